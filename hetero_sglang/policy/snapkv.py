"""SnapKV (arXiv 2404.14469): what the prompt's last queries look at, chosen once."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from hetero_sglang.ops.reference.attention import pool_average
from hetero_sglang.policy.base import Policy
from hetero_sglang.selection.scores import observed_weights


@dataclass(frozen=True)
class SnapKV(Policy):
    """Mean attention of the observed queries, pooled over neighbours, mean over the GQA group.

    Rows that are not chosen stay in host memory for later turns; the paper evicts them."""

    name: ClassVar[str] = "snapkv"

    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        return pool_average(observed_weights(q, k, scale, "mean")).mean(1)
