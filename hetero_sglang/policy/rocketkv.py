"""RocketKV (arXiv 2502.14051): a coarse choice at prefill end, and within it a choice at every step."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from hetero_sglang.policy.base import Index, Policy, Refresh
from hetero_sglang.policy.quest import PAGE, PageIndex
from hetero_sglang.selection.scores import observed_weights

POOL = 63  # neighbours of which stage 1 takes the greatest, as in the paper


class SparseIndex(PageIndex):
    """Quest's rows over the candidates of stage 1, read in half of the channels."""

    def scores(
        self, q: torch.Tensor, k_rows: torch.Tensor, v_rows: torch.Tensor, scale: float,
        real: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Logarithm of a chunk's softmax share, mean over the group, for each of its tokens: [C, U * PAGE].

        The logarithm keeps the order of shares that would be zero in float32. `scale` stands for the paper's
        1 / sqrt(D), which is made larger as the chosen channels hold less of a query's absolute sum."""
        q = q.float()  # [C, G, D]
        order = q.abs().sum(1).sort(dim=-1, descending=True, stable=True).indices  # of equals, the same everywhere
        channels = order[:, : q.shape[-1] // 2]  # [C, D/2]
        up = (q.sum(1) >= 0)[:, None]  # [C, 1, D]
        edge = torch.where(up, v_rows[:, :, 0], k_rows[:, :, 0])  # [C, U, D]: the greatest value or the least
        edge = edge.gather(2, channels[:, None].expand(-1, edge.shape[1], -1)).float()  # [C, U, D/2]
        part = q.gather(2, channels[:, None].expand(-1, q.shape[1], -1))  # [C, G, D/2]
        least = torch.finfo(torch.float32).tiny
        held = (part.abs().sum(-1) / q.abs().sum(-1).clamp(min=least)).clamp(min=least)  # [C, G]
        logits = part @ edge.transpose(1, 2) * (scale / held.sqrt())[..., None]  # [C, G, U]
        if real is not None:
            logits = logits.masked_fill(~real[:, None], float("-inf"))
        shares = logits.log_softmax(-1).logsumexp(1) - math.log(q.shape[1])  # [C, U]
        return shares.repeat_interleave(PAGE, dim=1)


@dataclass(frozen=True)
class RocketKV(Policy):
    """Stage 1 lists the tokens that may be read; stage 2 picks among them at every step, from chunks' bounds.

    A head that keeps a share f of its rows has a share sqrt(f) of the prompt listed: both stages compress alike.
    Ours differs: stage 1 lists whole chunks of 16 neighbours, which its pooling over 63 makes nearly the same; half of
    the channels are read (the paper's follow from the ratio,
    ceil(sqrt(c)) tokens for a stage of ratio c), because here the index is device memory that counts; rows that
    are not listed stay in host memory for later turns (as in the paper's multi-turn variant), and listed ones not
    picked must come from there; no first layers are dense: at equal bytes they would come out of the others' budget."""

    name: ClassVar[str] = "rocketkv"
    refresh: ClassVar[Refresh] = Refresh.STEP
    index: ClassVar[Index] = SparseIndex()

    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        """Stage 1: attention summed over the observed queries and the group, the greatest of POOL neighbours."""
        total = observed_weights(q, k, scale, "mean").sum(1) * q.shape[0]  # [C, L]
        return F.max_pool1d(total, POOL, 1, POOL // 2)

    def candidates(self, scores: torch.Tensor, count: int, window: int) -> torch.Tensor:
        """The chunks with the best tokens by stage 1 and those of the last `window` tokens."""
        heads, length = scores.shape
        chunks, listed = length // PAGE, self.max_candidates(length, count, window) // PAGE
        recent = min(-(-window // PAGE), listed)
        best = scores[:, : chunks * PAGE].unflatten(1, (chunks, PAGE)).amax(2)  # [C, chunks]
        picked = self.pick(best, [listed - recent] * heads, 0, chunks - recent)
        newest = torch.arange(chunks - recent, chunks, device=scores.device).expand(heads, -1)
        return torch.cat((picked, newest), 1) * PAGE

    def max_candidates(self, length: int, count: int, window: int) -> int:
        """sqrt(count / length) * length in whole chunks, yet enough for the window and no more than there are."""
        wanted = math.isqrt(count * length) // PAGE * PAGE
        return min(max(wanted, -(-window // PAGE) * PAGE), length // PAGE * PAGE)
