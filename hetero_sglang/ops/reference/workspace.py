"""What the torch operations of one step hand to each other."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.sizes import ARRIVALS
from hetero_sglang.ops.base import Counted, StepTables


def limit(units: int, run: int, most: int) -> int:
    """Runs that come to each of `units` requests' heads while they attend, of `most`."""
    return max(1, min(most, ARRIVALS // max(1, units * run)))


@dataclass(frozen=True)
class Found:
    """What some heads [C] of a request's layer look at: scores [C, U] float32 of its tokens' runs.

    `fading` [C]: what is left of the worth of rows that they hold, where the better of both are kept."""

    request: int
    heads: torch.Tensor
    scores: torch.Tensor
    fading: torch.Tensor | None = None


@dataclass(frozen=True)
class Swaps:
    """Runs that come, m in all: `head` [m] of those asked about, `place` [m] among its selected runs, `run` [m] of the
    request's tokens; all int64, in order of heads. `late` [C]: runs that should have come, but were too many."""

    head: torch.Tensor
    place: torch.Tensor
    run: torch.Tensor
    late: torch.Tensor


@dataclass(frozen=True)
class Coming:
    """Runs on their way to a request's heads: `head`, `run` [m] int64, the flat hot rows `rows` [m, run] that they are
    to have, if any, and what they are worth [m], where rows are merged."""

    request: int
    head: torch.Tensor
    run: torch.Tensor
    rows: torch.Tensor | None
    worth: torch.Tensor | None = None


@dataclass(frozen=True)
class Arrived:
    """Rows [n] that have come and are to lie at flat hot rows `rows` [n], if anywhere: k [n, D], v [n, Dv], of
    compressed heads `head` [n] of a request."""

    request: int
    head: torch.Tensor
    rows: torch.Tensor | None
    k: torch.Tensor
    v: torch.Tensor


class Workspace:
    """For steps of up to `batch` requests; to each head at most `most` runs come at once, of up to `run` rows."""

    def __init__(
        self, batch: int, heads: int, group: int, context: int, tokens: int, run: int, most: int,
        device: torch.device | str, pivots: int = 0, hot: HotPool | None = None,
    ) -> None:  # fmt: skip
        self.batch, self.group, self.context, self.room, self.aside = batch, group, context, most, hot is not None
        self.most = torch.full((1,), most * run, dtype=torch.int32, device=device)  # rows
        self.counted = torch.zeros(Counted.COUNT, dtype=torch.int64, device=device)
        self.found: list[Found] = []
        self.coming: list[Coming] = []
        self.arrived: list[Arrived] = []

    @staticmethod
    def splits_of(units: int, context: int) -> int:
        """Lists that what comes to a head is cut into."""
        return 1

    def sharing(self) -> Workspace:
        """Another, for steps that look for rows before those of this one or after them."""
        mine = copy(self)
        mine.most, mine.found, mine.coming, mine.arrived = self.most.clone(), [], [], []
        return mine

    def fitting(self, context: int) -> int:
        """Requests of so many tokens that there is room for at once; one at least."""
        return self.batch

    def limit(self, units: int, run: int) -> int:
        """Runs that come to a head in a step of so many units, at the utmost."""
        return limit(units, run, self.room) if self.aside else self.room

    def plan(self, step: StepTables) -> None:
        """Once per step."""
        for handed in (self.found, self.coming, self.arrived):
            handed.clear()

    def offer(self, head: int, heads: int, scores: torch.Tensor, fading: float, sink: int, window: int) -> None:
        """Scores [L] of a lone request's tokens, found elsewhere for `head` of a layer's `heads`; for `choose`."""
        number, fading_of = torch.tensor([head], device=scores.device), torch.tensor([fading], device=scores.device)
        self.found.append(Found(0, number, scores[None], fading_of))

    def give(
        self, tokens: torch.Tensor, places: torch.Tensor, rows: torch.Tensor, count: torch.Tensor, heads: int
    ) -> None:
        """What comes was chosen elsewhere, for N requests' heads: the first count[n] of `tokens` [N, S] to `places`
        [N, S] among the selected rows, which are the flat hot rows `rows` [N, S]; for `swap_in`."""
        self.counted[Counted.ROWS] += count.sum()
        for unit in count.nonzero()[:, 0].tolist():
            some = slice(int(count[unit]))
            head = torch.full_like(tokens[unit, some], unit % heads)
            self.coming.append(Coming(unit // heads, head, tokens[unit, some], rows[unit, some, None]))
