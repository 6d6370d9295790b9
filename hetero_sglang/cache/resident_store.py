"""The resident store: K/V of the resident heads (pivot and volatile) for every token slot, on the device."""

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
        self.k = [torch.zeros(rows, r, head_dim, dtype=dtype, device=device) for r in heads]
        self.v = [torch.zeros(rows, r, v_head_dim, dtype=dtype, device=device) for r in heads]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.k, *self.v))
