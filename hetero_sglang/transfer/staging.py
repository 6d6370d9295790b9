"""Where fetched rows wait for their copy to the device."""

from __future__ import annotations

import torch

from hetero_sglang.transfer.ring import Ring, Segment


class StagingRing(Ring):
    """A row is one token's K and V of one head, side by side."""

    def __init__(self, rows: int, head_dim: int, v_head_dim: int, dtype: torch.dtype, pin: bool = False) -> None:
        """HeteroError when the memory cannot be had or pinned."""
        self.head_dim, self.v_head_dim, self.dtype = head_dim, v_head_dim, dtype
        if (head_dim + v_head_dim) * dtype.itemsize < 4:
            raise ValueError("a row must have room for its slot, an int32")
        super().__init__("hetero-staging", rows, (head_dim + v_head_dim) * dtype.itemsize, pin)

    def views(self, segment: Segment) -> tuple[torch.Tensor, torch.Tensor]:
        """The segment's K [n, D] and V [n, Dv], without a copy."""
        shape = (segment.rows, self.head_dim + self.v_head_dim)
        k, v = self.memory.tensor(self.dtype, shape, segment.start * self.row_bytes).split(
            (self.head_dim, self.v_head_dim), 1
        )
        return k, v
