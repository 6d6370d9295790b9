"""The one exception a user's input may cause."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class HeteroError(ValueError):
    """A setting, file or request is unusable; the message is one sentence saying what is wrong and what to do."""


@contextmanager
def ending_the_process() -> Iterator[None]:
    """Inside, a HeteroError ends the process with its sentence on stderr and exit code 2, not with a trace."""
    try:
        yield
    except HeteroError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
