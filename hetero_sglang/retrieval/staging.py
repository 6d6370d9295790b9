"""Where fetched rows wait for their copy to the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hetero_sglang.memory.shared_memory import SharedMemory


@dataclass(frozen=True)
class Segment:
    """Staging rows [start, start + rows), owned by whoever acquired them."""

    start: int
    rows: int

    @property
    def end(self) -> int:
        return self.start + self.rows


class StagingRing:
    """Rows of shared memory lent out in contiguous segments, first fit.

    A row is one token's K and V of one head; a segment of n rows holds K [n, D], then V [n, Dv].
    """

    def __init__(self, rows: int, head_dim: int, v_head_dim: int, dtype: torch.dtype, pin: bool = False) -> None:
        """HeteroError when the memory cannot be had or pinned."""
        self.rows = rows
        self.head_dim, self.v_head_dim, self.dtype = head_dim, v_head_dim, dtype
        self.row_bytes = (head_dim + v_head_dim) * dtype.itemsize
        self.memory = SharedMemory("hetero-staging", rows * self.row_bytes, pin)
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

    def views(self, segment: Segment) -> tuple[torch.Tensor, torch.Tensor]:
        """The segment's K [n, D] and V [n, Dv], without a copy."""
        at = segment.start * self.row_bytes
        k = self.memory.tensor(self.dtype, (segment.rows, self.head_dim), at)  # [n, D]
        at += segment.rows * self.head_dim * self.dtype.itemsize
        v = self.memory.tensor(self.dtype, (segment.rows, self.v_head_dim), at)  # [n, Dv]
        return k, v

    def raw(self, start: int, rows: int) -> torch.Tensor:
        """All bytes of staging rows [start, start + rows), without a copy."""
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
