"""Quest (arXiv 2406.10774): at every step, the pages whose keys could answer this step's query best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.base import Index, Policy, Refresh

PAGE = 16  # tokens, the paper's page


class PageIndex(Index):
    """Per page one row: each channel's least value as the K row, its greatest as the V row."""

    span: ClassVar[int] = PAGE
    rows: ClassVar[int] = 1

    def build(self, k: torch.Tensor, v_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """k [C, U, tokens, D] -> [C, U, 1, D] twice, in k's dtype and without rounding; any number of tokens."""
        require_one_width(k.shape[-1], v_dim)
        return k.amin(2, keepdim=True), k.amax(2, keepdim=True)

    def scores(self, q: torch.Tensor, k_rows: torch.Tensor, v_rows: torch.Tensor, scale: float) -> torch.Tensor:
        """The most that any key within the page's bounds could give any query of the group: [C, U * PAGE]."""
        q, least, most = q.float(), k_rows[:, :, 0].float(), v_rows[:, :, 0].float()  # [C, G, D], [C, U, D] twice
        # max(q m, q M) takes M where q is positive and m where it is negative: two products, nothing of U x G x D.
        bound = q.clamp(min=0) @ most.transpose(1, 2) + q.clamp(max=0) @ least.transpose(1, 2)  # [C, G, U]
        return bound.amax(1).repeat_interleave(PAGE, dim=1)


@dataclass(frozen=True)
class Quest(Policy):
    """Whole pages by the upper bound of their attention logit, the maximum over the GQA group.

    Ours differs: a group shares one choice, as its rows are stored once (the paper has one KV head per query
    head); rows not chosen are in host memory and must come from there (the paper keeps all on the device); no
    first layers are dense: at equal bytes they would come out of the others' budget.
    """

    name: ClassVar[str] = "quest"
    refresh: ClassVar[Refresh] = Refresh.STEP
    index: ClassVar[Index] = PageIndex()

    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        """Each token's page's bound for the last query; an incomplete last page has its own."""
        pages, tail = split_units(k, PAGE)
        built = [self.index.build(part, k.shape[-1]) for part in (pages, tail[:, None]) if part.shape[2]]
        least, most = (torch.cat(rows, 1) for rows in zip(*built, strict=True))  # [C, pages, 1, D]
        return self.index.scores(q[-1], least, most, scale)[:, : k.shape[0]]

    def pick(self, scores: torch.Tensor, counts: list[int], low: int, high: int) -> list[torch.Tensor]:
        """Whole pages, as a page's tokens tie; what is left goes to the first tokens of the next best page.

        Pages lie at multiples of PAGE from the text's start; one that `low` or `high` cuts counts as what is inside.
        """
        return pick_in_order(scores, counts, low, high)


def require_one_width(k_dim: int, v_dim: int) -> None:
    """An index that puts numbers of keys into V rows needs room for them."""
    if k_dim != v_dim:
        raise HeteroError(
            f"this --kv-policy keeps its index in rows of keys and values of one width, but the model's are {k_dim} "
            f"and {v_dim} wide: choose heterocache, snapkv, chunkkv or streamingllm."
        )


def split_units(k: torch.Tensor, span: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [L, C, D] as complete units [C, L // span, span, D] and the tokens after them [C, L % span, D]."""
    units = k.shape[0] // span
    by_head = k.transpose(0, 1)  # [C, L, D]
    return by_head[:, : units * span].unflatten(1, (units, span)), by_head[:, units * span :]


def pick_in_order(scores: torch.Tensor, counts: list[int], low: int, high: int) -> list[torch.Tensor]:
    """`Policy.pick` with equal scores taken from the left, so that tokens which share a score come together.

    `topk` alone takes any of the tokens that tie at its edge, and not the same ones on every device.
    """
    inside = scores[:, low:high]  # [C, n]
    counts = [min(count, inside.shape[1]) for count in counts]
    most = max(counts, default=0)
    if not most:
        return [torch.empty(0, dtype=torch.int64, device=scores.device) for _ in counts]
    wanted = torch.tensor(counts, device=scores.device)[:, None]  # [C, 1]
    edge = inside.topk(most).values.gather(1, (wanted - 1).clamp(min=0))  # [C, 1], the last score that gets in
    above, level = inside > edge, inside == edge
    taken = above | (level & (level.cumsum(1) <= wanted - above.sum(1, keepdim=True)))
    return [positions + low for positions in taken.nonzero()[:, 1].split(counts)]
