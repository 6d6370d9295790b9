"""The bar of a running matrix."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


class Progress:
    """Counts samples and names the cells under way, from several threads; a context manager."""

    def __init__(self, total: int, done: int) -> None:
        self._bar = tqdm(total=total, initial=done, unit="sample", dynamic_ncols=True)
        self._cells: list[str] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    @contextmanager
    def cell(self, label: str) -> Iterator[None]:
        """Names a cell while it runs."""
        with self._lock:
            self._cells.append(label)
            self._name()
        try:
            yield
        finally:
            with self._lock:
                self._cells.remove(label)
                self._name()

    def step(self, samples: int = 1) -> None:
        """So many are done, or will not be."""
        with self._lock:
            self._bar.update(samples)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._bar.write(text)

    def _name(self) -> None:
        if self._cells:  # else the last one stands until the next
            self._bar.set_description(self._cells[0] if len(self._cells) == 1 else f"{len(self._cells)} cells")
