"""Bringing compressed heads' rows back from the host tier: drift, the worker process and its client."""
