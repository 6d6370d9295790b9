"""Quest (arXiv 2406.10774): at every step, the pages whose keys could answer this step's query best."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from hetero_sglang.policy.base import Index, Policy, Refresh
from hetero_sglang.policy.rows import require_one_width, split_units

PAGE = 16  # tokens, the paper's page


class PageIndex(Index):
    """Per page one row: each channel's least value as the K row, its greatest as the V row."""

    span: ClassVar[int] = PAGE
    rows: ClassVar[int] = 1

    def build(self, k: torch.Tensor, v_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """k [C, U, tokens, D] -> [C, U, 1, D] twice, in k's dtype and without rounding; any number of tokens."""
        require_one_width(k.shape[-1], v_dim)
        return k.amin(2, keepdim=True), k.amax(2, keepdim=True)

    def scores(
        self, q: torch.Tensor, k_rows: torch.Tensor, v_rows: torch.Tensor, scale: float,
        real: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The most that any key within the page's bounds could give any query of the group: [C, U * PAGE]."""
        q, least, most = q.float(), k_rows[:, :, 0].float(), v_rows[:, :, 0].float()  # [C, G, D], [C, U, D] twice
        # max(q m, q M) takes M where q is positive and m where it is negative: two products, nothing of U x G x D.
        bound = q.clamp(min=0) @ most.transpose(1, 2) + q.clamp(max=0) @ least.transpose(1, 2)  # [C, G, U]
        return bound.amax(1).repeat_interleave(PAGE, dim=1)


@dataclass(frozen=True)
class Quest(Policy):
    """Whole pages by the upper bound of their attention logit, the maximum over the GQA group; a page's tokens tie,
    so they are picked together, but for the last page's, of which the first that still fit are.

    Ours differs: a group shares one choice, as its rows are stored once (the paper has one KV head per query
    head); rows not chosen are in host memory and must come from there (the paper keeps all on the device); no
    first layers are dense: at equal bytes they would come out of the others' budget."""

    name: ClassVar[str] = "quest"
    refresh: ClassVar[Refresh] = Refresh.STEP
    index: ClassVar[Index] = PageIndex()

    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        """Each token's page's bound for the last query; an incomplete last page has its own."""
        pages, tail = split_units(k, PAGE)
        built = [self.index.build(part, k.shape[-1]) for part in (pages, tail[:, None]) if part.shape[2]]
        least, most = (torch.cat(rows, 1) for rows in zip(*built, strict=True))  # [C, pages, 1, D]
        return self.index.scores(q[-1], least, most, scale)[:, : k.shape[0]]
