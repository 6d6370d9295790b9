"""A request's way through prefill and decode: one engine for every device, and how heads find rows again."""
