"""The resident store: K/V of the resident heads (pivot and volatile) for every token slot, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class ResidentStore:
    """Per layer `k` [rows, R, D] and `v` [rows, R, Dv]; R differs between layers and may be 0."""

    def __init__(
        self,
        rows: int,
        heads: Sequence[int],
        head_dim: int,
        v_head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.rows = rows
        self.k = [torch.zeros(rows, r, head_dim, dtype=dtype, device=device) for r in heads]
        self.v = [torch.zeros(rows, r, v_head_dim, dtype=dtype, device=device) for r in heads]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.k, *self.v))

    def write(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store k [n, R, D], v [n, R, Dv] at slots [n]."""
        self.k[layer][slots] = k
        self.v[layer][slots] = v

    def read(self, layer: int, slots: torch.Tensor, run: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
        """K [n, R, D], V [n, R, Dv] of slots [n]; `run` >= 0 says the slots are run, run + 1, ... (no copy)."""
        if run >= 0:
            end = run + slots.numel()
            return self.k[layer][run:end], self.v[layer][run:end]
        return self.k[layer].index_select(0, slots), self.v[layer].index_select(0, slots)
