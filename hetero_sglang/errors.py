"""The one exception a user's input may cause."""

from __future__ import annotations


class HeteroError(ValueError):
    """A setting, file or request is unusable; the message is one sentence saying what is wrong and what to do."""
