"""A request's way through a step: prefill, decode, monitor."""
