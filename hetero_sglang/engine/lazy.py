"""Heads with a key index: what a head wants most by it comes in, step by step, while the heads attend.

Three things go on at once in a layer: attention to the rows that heads hold, the search for what they lack (`lane`),
and the new keys' index rows (`beside`). What was found is attended to last, and takes its places after that."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from hetero_sglang.cache.lanes import Lane, Mark, mark, upload
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config import development
from hetero_sglang.engine.finder import Finder, Parts
from hetero_sglang.ops.base import Arrivals, StepTables
from hetero_sglang.ops.reference.choose import used_at_first
from hetero_sglang.ops.reference.index import run_scores
from hetero_sglang.ops.step import DecodeStep
from hetero_sglang.profile.index_plan import EVERY


class Lazy(Finder):
    """Rows come in the step that wants them."""

    probed = True

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        store = self.cache.index
        assert store is not None
        self.run, self.room = self.settings.rule.run, self.settings.most_swaps
        self.index = store.layers
        self.widest = max(1, *(each.heads.numel() for each in self.index))
        self.most: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # by workspace
        self.lane, self.beside = Lane(self.device), Lane(self.device)
        self.turns = torch.arange(EVERY[-1], dtype=torch.int32, device=self.device)
        self.known: Mark | None = None  # the layer's new keys have their index rows
        self.seated: Mark | None = None  # what came has its places

    def first(self, layer: int, scores: torch.Tensor, counts: list[int], low: int, high: int) -> torch.Tensor:
        """The best whole runs."""
        run = self.index[layer].run
        first, last = low // run, (scores.shape[1] - self.settings.rule.window_of(run)) // run
        places = upload(torch.tensor(counts), scores.device) // run  # [C]
        best = run_scores(scores, run)[:, first:last].topk(max(counts) // run).indices + first
        mine = torch.arange(best.shape[1], device=best.device) < places[:, None]
        best = torch.where(mine, best, last).sort(1).values  # what is not a head's own comes last
        return (best[..., None] * run + torch.arange(run, device=scores.device)).flatten(1)

    def worth(self, layer: int, scores: torch.Tensor) -> torch.Tensor:
        """When a token's run was last used, by its scores; 0 where it is incomplete."""
        run = self.index[layer].run
        best = used_at_first(run_scores(scores, run)).repeat_interleave(run, 1)
        return torch.nn.functional.pad(best, (0, scores.shape[1] - best.shape[1])).view(torch.float32)

    def written(self, layer: int, slots: torch.Tensor, k: torch.Tensor) -> None:
        mine = self.index[layer]
        self.ops.index(k, slots, mine.heads, mine.rows, mine.encode, mine.offset, mine.fields)

    def begin(self, step: DecodeStep, known: Sequence[WorkingSet], lengths: Sequence[int]) -> None:
        allowed = development.changed_rows()
        most = self.room * self.run if allowed is None else allowed
        if self.most.get(step.work) != most:
            self.most[step.work] = most
            step.work.most.fill_(most)
        super().begin(step, known, lengths)

    def appended(self, layer: int, slots: torch.Tensor, k: torch.Tensor) -> None:
        self.beside.follow(mark(self.device))
        with self.beside:
            self.written(layer, slots, k)
        self.known = self.beside.mark()

    def seek(
        self, layer: int, q: torch.Tensor, slots: torch.Tensor, step: StepTables, length: int, scale: float, work: Any
    ) -> None:
        """Before a prefill's queries q [n, Hq, D] attend: heads take in what these want of the request's first `length`
        tokens, at `slots`; `step` is of the request alone, `work` a step's."""
        mine, hot = self.index[layer], self.cache.hot
        if not mine.heads.numel():
            return
        sink, window = self.settings.rule.sink, self.settings.rule.window_of(mine.run)
        turn = -mine.turn % EVERY[-1]  # every head's
        step = replace(step, clock=self.turns[turn : turn + 1])
        self.ops.ask(q, mine, slots, step, length, scale, sink, window, work)
        self.ops.choose(mine, step, hot, sink, window, work)
        self.ops.swap_in(mine, self.layers[layer].host, slots, self.turns[:1], step, hot, sink, work)
        self.ops.seat(mine, step, hot, work)

    def find(
        self, layer: int, step: DecodeStep, tables: StepTables, q: torch.Tensor, scale: float
    ) -> Arrivals | None:  # fmt: skip
        mine, hot, work = self.index[layer], self.cache.hot, step.work
        if not mine.heads.numel():
            return None
        sink, window = self.settings.rule.sink, self.settings.rule.window_of(mine.run)
        self.lane.follow(mark(self.device))
        with self.lane:
            self.ops.probe(q, mine, step.slots, step.starts, tables, scale, sink, window, work)
            self.ops.choose(mine, tables, hot, sink, window, work)
            self.ops.swap_in(mine, self.layers[layer].host, step.slots, step.starts, tables, hot, sink, work)
        return Arrivals(mine, work, self.lane.mark())

    def attended(self, layer: int, tables: StepTables, arrivals: Arrivals | None) -> None:
        if arrivals is not None:
            self.lane.follow(mark(self.device))
            with self.lane:
                self.ops.seat(arrivals.layer, tables, self.cache.hot, arrivals.work)
            self.seated = self.lane.mark()
        joined = [self.known, self.seated if layer == len(self.index) - 1 else None]
        for point in joined:  # the next layer's search comes after this one's in the lane
            if point is not None:
                point.hold(self.device)
        self.known = None
