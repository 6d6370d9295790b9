"""Work on several things at once, each in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from typing import Any, TypeVar

T = TypeVar("T")
_PAUSE = 0.2  # seconds between two calls of `halt`: what was just starting at the first one is there at the next


class Jobs:
    """`count` at once; one alone runs in the thread that calls.

    `halt` ends what running work waits for. `over` is set before: what comes out of running work then counts for
    nothing.
    """

    def __init__(self, count: int, halt: Callable[[], None]) -> None:
        self.count, self.halt = count, halt
        self.over = threading.Event()

    def run(self, work: Callable[[T], Any], things: Iterable[T]) -> None:
        """Work on all of them, begun in their order. What stops the caller (Ctrl-C) or is raised by `work` stops all
        of it, and is raised when nothing runs any more.
        """
        if self.count == 1:
            for thing in things:
                work(thing)
            return
        with ThreadPoolExecutor(self.count) as pool:
            futures: list[Future[None]] = []
            try:
                futures += (pool.submit(self._one, work, thing) for thing in things)
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self.over.set()
                running = [future for future in futures if not future.cancel()]
                self.halt()
                while wait(running, timeout=_PAUSE).not_done:
                    self.halt()
                raise

    def _one(self, work: Callable[[T], Any], thing: T) -> None:
        if self.over.is_set():
            return
        try:
            work(thing)
        except BaseException:
            self.over.set()  # in this thread, which would begin the next thing before the caller knows
            raise
