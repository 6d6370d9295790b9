"""HeteroCache (arXiv 2601.13684): heads by role, satellites refilled when their pivot's attention has moved.

Or, where the head profile has a key index, every head finds its rows itself in the step that needs them."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from hetero_sglang.policy.base import Policy, Refresh
from hetero_sglang.selection.scores import attention_scores


@dataclass(frozen=True)
class HeteroCache(Policy):
    """The paper scores by the last query alone; here the last `observe` queries do, by their maximum.

    Budgets follow the profile's weights; `layerwise` (an ablation) gives all heads of a layer the same tokens."""

    layerwise: bool = False
    name: ClassVar[str] = "heterocache"
    refresh: ClassVar[Refresh] = Refresh.DRIFT
    roles: ClassVar[bool] = True

    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        each = attention_scores(q, k, scale)
        return each.mean(0, keepdim=True).expand_as(each) if self.layerwise else each


@dataclass(frozen=True)
class IndexedHeads(Policy):
    """heterocache with a key index: all heads keep a small working set, which changes lazily, step by step."""

    name: ClassVar[str] = "heterocache"
    refresh: ClassVar[Refresh] = Refresh.LAZY

    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        return attention_scores(q, k, scale)
