"""ChunkKV (arXiv 2502.00299): runs of neighbouring tokens, chosen once and for all heads of a layer."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from hetero_sglang.policy.base import Policy
from hetero_sglang.policy.snapkv import SnapKV


@dataclass(frozen=True)
class ChunkKV(Policy):
    """SnapKV's scores, summed over the layer's compressed KV heads (those of one rank), kept chunk by chunk.

    Ours differs: rows not chosen stay in host memory for later turns (the paper evicts them); a budget is filled
    to the row instead of whole chunks; every layer chooses for itself (the paper may reuse a layer's choice)."""

    size: int = 10  # tokens of a chunk, as in the paper
    name: ClassVar[str] = "chunkkv"

    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        each = SnapKV().scores(q, k, scale)  # [C, L]
        return each.sum(0, keepdim=True).expand_as(each)

    def pick(self, scores: torch.Tensor, counts: list[int], low: int, high: int) -> torch.Tensor:
        """Whole chunks by the mean of their tokens; what is left goes to the first tokens of the next best chunk.

        Chunks are laid out from `low`; the last one may be shorter and is scored by the tokens it has. Of chunks
        that tie, the earlier one is taken first."""
        inside = scores[:, low:high]  # [C, n]
        length = inside.shape[1]
        chunks = -(-length // self.size)
        sums = F.pad(inside, (0, chunks * self.size - length)).unflatten(1, (chunks, self.size)).sum(2)  # [C, chunks]
        first = torch.arange(chunks, device=scores.device) * self.size
        means = sums / (length - first).clamp(max=self.size)
        spread = means.repeat_interleave(self.size, dim=1)[:, :length]  # [C, n]
        return super().pick(F.pad(spread, (low, scores.shape[1] - high)), counts, low, high)
