"""The key index of the compressed heads: a few bits for every token slot, on the device."""

from __future__ import annotations

import torch

from hetero_sglang.config.layout import HeadLayout
from hetero_sglang.profile.index_plan import IndexPlan, words


class IndexStore:
    """Per layer `rows` int16 [I, slots, words], row = SGLang's slot id, shared by requests as K and V are; what makes
    and reads them, float32: `encode`, `decode` [I, D, R], `offset` [I, R]; `which` [I] int32 of the layer's
    compressed heads have an index, and probe in one of `every` [I] int32 so many steps.
    """

    def __init__(self, slots: int, layout: HeadLayout, plan: IndexPlan, device: torch.device | str) -> None:
        """`plan`: of this rank's heads."""
        self.fields = plan.fields
        self.rows: list[torch.Tensor] = []
        self.which: list[torch.Tensor] = []
        self.every: list[torch.Tensor] = []
        self.encode: list[torch.Tensor] = []
        self.decode: list[torch.Tensor] = []
        self.offset: list[torch.Tensor] = []
        for number, layer in enumerate(layout.layers):
            which = [c for c, head in enumerate(layer.compressed) if plan.probed[number, head]]
            heads = [layer.compressed[c] for c in which]
            self.which.append(torch.tensor(which, dtype=torch.int32, device=device))
            self.every.append(torch.tensor(plan.every[number][heads], dtype=torch.int32, device=device))
            self.rows.append(torch.zeros(len(heads), slots, words(plan.fields), dtype=torch.int16, device=device))
            for kept, of in ((self.encode, plan.encode), (self.decode, plan.decode), (self.offset, plan.offset)):
                kept.append(torch.tensor(of[number][heads], dtype=torch.float32, device=device))

    @property
    def nbytes(self) -> int:
        return sum(rows.numel() * rows.element_size() for rows in self.rows)
