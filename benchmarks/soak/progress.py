"""The line that says how far a soak has come."""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.soak.tally import Tally

_EVERY = 15.0  # seconds between two lines where nobody looks at a terminal


class Progress:
    """A context manager: one line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int) -> None:
        self.total, self._begun, self._next = total, time.monotonic(), 0.0
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live:
            print(file=sys.stderr)

    def tell(self, tally: Tally) -> None:
        """To be called often."""
        now = time.monotonic() - self._begun
        if self._live:
            print(f"\r\033[K[{now:4.0f} s] of {self.total}: {tally.line()}", end="", file=sys.stderr, flush=True)
        elif now >= self._next:
            self._next = now + _EVERY
            print(f"[{now:4.0f} s] of {self.total}: {tally.line()}", file=sys.stderr, flush=True)
