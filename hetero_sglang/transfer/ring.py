"""Shared memory that is lent out piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hetero_sglang.cache.shared_memory import SharedMemory


@dataclass(frozen=True)
class Segment:
    """Rows [start, start + rows) of a ring, owned by whoever acquired them."""

    start: int
    rows: int

    @property
    def end(self) -> int:
        return self.start + self.rows


class Ring:
    """Rows of `row_bytes` of shared memory, lent out in contiguous segments, first fit."""

    def __init__(self, name: str, rows: int, row_bytes: int, pin: bool = False) -> None:
        """HeteroError when the memory cannot be had or pinned."""
        self.rows, self.row_bytes = rows, row_bytes
        self.memory = SharedMemory(name, rows * row_bytes, pin)
        self._live: dict[int, Segment] = {}  # by start

    @property
    def free_rows(self) -> int:
        return self.rows - sum(segment.rows for segment in self._live.values())

    def acquire(self, rows: int) -> Segment | None:
        """The first gap of `rows` rows, None when there is none now."""
        if rows < 1:
            raise ValueError(f"a segment has at least one row, not {rows}")
        start = 0
        for segment in sorted(self._live.values(), key=lambda live: live.start):
            if segment.start - start >= rows:
                break
            start = segment.end
        if self.rows - start < rows:
            return None
        self._live[start] = Segment(start, rows)
        return self._live[start]

    def release(self, segment: Segment) -> None:
        """Give a segment back. ValueError when it is not live."""
        if self._live.get(segment.start) != segment:
            raise ValueError(f"{segment} is not live")
        del self._live[segment.start]

    def raw(self, start: int, rows: int) -> torch.Tensor:
        """All bytes of rows [start, start + rows), without a copy."""
        return self.memory.tensor(torch.uint8, (rows * self.row_bytes,), start * self.row_bytes)

    def check_integrity(self) -> None:
        """AssertionError when live segments overlap or leave the ring."""
        end = 0
        for segment in sorted(self._live.values(), key=lambda live: live.start):
            assert end <= segment.start and segment.rows > 0, segment
            end = segment.end
        assert end <= self.rows, end

    def close(self) -> None:
        """Unpin and give the memory back."""
        self.memory.close()
