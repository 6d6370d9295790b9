"""Running statistics by outcome: how much a layer's attention output changes when a head keeps only some keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hetero_sglang.calibration.tracker import DocumentStatistics, Steps, top_mask

SINK, RECENT = 4, 64  # keys at the prompt's ends that every head keeps, as the server does


@dataclass(frozen=True)
class Step:
    """One decode step's attention of one layer: weights [H, G, L] of sum 1, values [H, L, Dv] and the output
    projection [H, G, Dv, hidden], all float32."""

    weights: torch.Tensor
    values: torch.Tensor
    projection: torch.Tensor

    @classmethod
    def of(
        cls, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, o_proj: torch.Tensor
    ) -> Step:
        """From query [Hq, 1, D], key [H, L, D], value [H, L, Dv] and o_proj [hidden, Hq * Dv]."""
        heads = key.shape[0]
        grouped = query.float().view(heads, -1, query.shape[-1])  # [H, G, D]
        weights = (grouped @ key.float().transpose(1, 2) * scaling).softmax(-1)
        projection = o_proj.float().T.reshape(heads, grouped.shape[1], value.shape[-1], -1)
        return cls(weights, value.float(), projection)

    def loss(self, kept: torch.Tensor) -> torch.Tensor:
        """kept [P, H, L] boolean -> [P, H]: the norm of each head's change as a share of the layer's output."""
        whole = self.weights @ self.values  # [H, G, Dv]
        total = torch.einsum("hgd,hgdo->o", whole, self.projection).norm().clamp(min=1e-12)
        held = self.weights[None] * kept[:, :, None]  # [P, H, G, L]
        held = held / held.sum(-1, keepdim=True).clamp(min=1e-12)
        change = held @ self.values - whole  # [P, H, G, Dv]
        return torch.einsum("phgd,hgdo->pho", change, self.projection).norm(dim=-1) / total


class OutputTracker:
    """Stability: 1 - loss of a decode step on the prefill's top-k keys; similarity [p, h]: of head h on head p's
    top-k of the same step. Sinks, recent and generated keys are kept, as in the server.

    Not the paper's measure, which counts common keys: a head that looks at single keys, or only at its neighbours,
    shares few of a large top-k with itself and yet loses all, or nothing, when the rest is dropped; and some heads
    matter to nobody. The worst tenth of the steps counts instead of the median: an answer is lost with its rarest look.
    """

    def __init__(self, num_layers: int, topk: int) -> None:
        self.topk = topk
        self.prefill: dict[int, torch.Tensor] = {}
        self.steps = Steps(num_layers)

    def add(self, layer: int, scores: torch.Tensor, step: Step | None) -> None:
        """Pooled scores [heads, prompt]: with None of the prefill, then with each decode step's attention."""
        now = top_mask(scores, self.topk)
        now[:, :SINK] = True
        now[:, -RECENT:] = True
        if step is None:
            self.prefill[layer] = now
            return
        generated = now.new_ones(len(now), step.weights.shape[-1] - now.shape[1])
        first, now = (torch.cat((kept, generated), 1) for kept in (self.prefill[layer], now))  # [H, L]
        own = 1 - step.loss(first[None])[0]
        pairs = 1 - step.loss(now[:, None].expand(-1, len(now), -1))
        self.steps.add(layer, own.clamp(0, 1), pairs.clamp(0, 1))

    def finish(self) -> DocumentStatistics:
        """Means over the worst tenth of the steps seen (at least one)."""
        return self.steps.statistics(_worst)


def _worst(values: np.ndarray) -> np.ndarray:
    """Mean of the lowest tenth along the first axis, of one value at least."""
    count = -(-len(values) // 10)
    return np.sort(values, axis=0)[:count].mean(0)
