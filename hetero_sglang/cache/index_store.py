"""The key index of the compressed heads: a few bits for every token slot, on the device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hetero_sglang.config.layout import HeadLayout
from hetero_sglang.profile.index_plan import Fields, IndexPlan, words


@dataclass(frozen=True)
class LayerIndex:
    """One layer's key index, of those I of its C compressed heads that have one: `heads` [I] int32 of the layer's, and
    `which` [I] int32 of the compressed ones; `every` [I] int32: a head probes where the step's clock and the layer's
    `turn` add up to a multiple, for all requests, so that the layer rests in other steps. `rows` int16 [I, slots,
    words], row = SGLang's slot id, shared by requests as K and V are; what makes and reads them, float32: `encode`,
    `decode` [I, D, R] and `offset` [I, R]. `first`: compressed heads in earlier layers; `run`: neighbouring tokens that
    come and go together; `often`: heads that probe in a step in which one does, on the mean (None: all)."""

    heads: torch.Tensor
    which: torch.Tensor
    every: torch.Tensor
    rows: torch.Tensor
    encode: torch.Tensor
    decode: torch.Tensor
    offset: torch.Tensor
    fields: Fields
    first: int
    turn: int = 0
    run: int = 1
    often: float | None = None


class IndexStore:
    """`layers`: a LayerIndex of each."""

    def __init__(self, slots: int, layout: HeadLayout, plan: IndexPlan, device: torch.device | str) -> None:
        """`plan`: of this rank's heads."""

        def made(values: np.ndarray | Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self.layers: list[LayerIndex] = []
        for number, layer in enumerate(layout.layers):
            which = [c for c, head in enumerate(layer.compressed) if plan.probed[number, head]]
            heads = [layer.compressed[c] for c in which]
            every = plan.every[number][heads]
            self.layers.append(
                LayerIndex(
                    made(heads, torch.int32),
                    made(which, torch.int32),
                    made(every, torch.int32),
                    torch.zeros(len(heads), slots, words(plan.fields), dtype=torch.int16, device=device),
                    made(plan.encode[number][heads]),
                    made(plan.decode[number][heads]),
                    made(plan.offset[number][heads]),
                    plan.fields,
                    layer.first,
                    turn=number,  # each step has its share of the layers
                    run=int(plan.run[number]),
                    often=at_once(every),
                )
            )

    def measure(self, units: Sequence[float]) -> None:
        """Keys come divided by their layer's unit, and queries times it: what indexes make and say stays the same."""
        self.layers[:] = [
            layer if unit == 1 else replace(layer, encode=layer.encode * unit, decode=layer.decode / unit)
            for layer, unit in zip(self.layers, units, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        return sum(layer.rows.nbytes for layer in self.layers)


def at_once(every: np.ndarray) -> float:
    """Of heads that find rows in every [I] so many steps: how many do in a step in which one does, on the mean."""
    shares = 1 / every
    return float(shares.sum() / shares.max()) if every.size else 0.0
