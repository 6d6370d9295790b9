"""Heads with a key index: what a head wants most by it comes in, step by step, while the heads attend.

Three things go on at once in a layer: attention to the rows that heads hold, the search for what they lack (`lane`),
and the new keys' index rows (`beside`). What was found is attended to last, and takes its places after that."""

from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.cache.lanes import Lane, Mark, mark, upload
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
        self.which = [each.which.tolist() for each in self.index]  # compressed heads that have one, by layer
        self.widest = max(1, *map(len, self.which))
        self.most: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # by workspace
        self.lane, self.beside = Lane(self.device), Lane(self.device)
        self.turns = torch.arange(EVERY[-1], dtype=torch.int32, device=self.device)
        self.known: Mark | None = None  # the layer's new keys have their index rows
        self.seated: Mark | None = None  # what came has its places

    def first(self, layer: int, scores: torch.Tensor, counts: list[int], low: int, high: int) -> torch.Tensor:
        """The best whole runs."""
        return self.best(layer, run_scores(scores, self.index[layer].run), scores.shape[1], counts, low)

    def best(self, layer: int, runs: torch.Tensor, length: int, counts: list[int], low: int) -> torch.Tensor:
        """As `first`, by scores [C, U] of the runs of `length` tokens."""
        run = self.index[layer].run
        first, last = low // run, (length - self.settings.rule.window_of(run)) // run
        places = upload(torch.tensor(counts), runs.device) // run  # [C]
        best = runs[:, first:last].topk(max(counts) // run).indices + first
        mine = torch.arange(best.shape[1], device=best.device) < places[:, None]
        best = torch.where(mine, best, last).sort(1).values  # what is not a head's own comes last
        return (best[..., None] * run + torch.arange(run, device=runs.device)).flatten(1)

    def worth(self, layer: int, scores: torch.Tensor) -> torch.Tensor:
        """When a token's run was last used, by its scores; 0 where it is incomplete."""
        return self.used(layer, run_scores(scores, self.index[layer].run), scores.shape[1])

    def used(self, layer: int, runs: torch.Tensor, length: int) -> torch.Tensor:
        """As `worth`, by scores [C, U] of the runs of `length` tokens."""
        each = used_at_first(runs).repeat_interleave(self.index[layer].run, 1)
        return torch.nn.functional.pad(each, (0, length - each.shape[1])).view(torch.float32)

    def written(self, layer: int, slots: torch.Tensor, k: torch.Tensor) -> None:
        mine = self.index[layer]
        self.ops.index(k, slots, mine.heads, mine.rows, mine.encode, mine.offset, mine.fields)

    def prepare(self, step: DecodeStep) -> None:
        self.allow(step.work, development.changed_rows() if self.settings.tuning.retrieval else 0)

    def fixed(self, recorded: bool) -> dict[str, str]:
        why = "heads with a key index watch no pivots"
        return {"drift_threshold": why, "monitor_interval": why}

    def allow(self, work: Any, rows: int | None) -> None:
        """So many rows may come to a head at once; None: as many as a workspace holds."""
        most = self.room * self.run if rows is None else rows
        if self.most.get(work) != most:
            self.most[work] = most
            work.most.fill_(most)

    def appended(self, layer: int, slots: torch.Tensor, k: torch.Tensor) -> None:
        self.beside.follow(mark(self.device))
        with self.beside:
            self.written(layer, slots, k)
        self.known = self.beside.mark()

    def ask(
        self, layer: int, q: torch.Tensor, slots: torch.Tensor, starts: torch.Tensor, step: StepTables, length: int,
        scale: float, work: Any, lacking: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """What queries q [B, n, Hq, D] of a prefill want of their request's first `length` tokens, at `slots` from
        starts[0] on, n of them together: the first's scores [I, U] of runs, of full heads alone. All requests of `step`
        are this one, or none; `work` is a step's; `lacking`: of what heads do not hold."""
        mine, rule, hot = self.index[layer], self.settings.rule, self.cache.hot if lacking else None
        step, window = self._every(mine, step), rule.window_of(mine.run)
        return self.ops.ask(q, mine, slots, starts, step, length, scale, rule.sink, window, work, hot)

    def bring(
        self, layer: int, q: torch.Tensor, slots: torch.Tensor, starts: torch.Tensor, step: StepTables, length: int,
        scale: float, work: Any,
    ) -> Arrivals | None:  # fmt: skip
        """What queries want and their heads lack, to be attended to by them alone: heads keep what they hold. Arguments
        as of `ask`. None: no head can say what it wants."""
        mine, hot, rule = self.index[layer], self.cache.hot, self.settings.rule
        if not mine.heads.numel():
            return None
        self.ask(layer, q, slots, starts, step, length, scale, work, lacking=True)
        self.ops.lack(mine, step, rule.sink, rule.window_of(mine.run), work)
        self.ops.swap_in(mine, self.layers[layer].host, slots, starts, step, hot, rule.sink, work, passing=True)
        return Arrivals(mine, work, Mark(None))

    def seek(
        self, layer: int, q: torch.Tensor, slots: torch.Tensor, starts: torch.Tensor, step: StepTables, length: int,
        scale: float, work: Any,
    ) -> None:  # fmt: skip
        """Heads take in what queries q [1, n, Hq, D] want, as in a step; other arguments as of `ask`."""
        mine, hot, rule = self.index[layer], self.cache.hot, self.settings.rule
        if not mine.heads.numel():
            return
        self.ask(layer, q, slots, starts, step, length, scale, work)
        step = self._every(mine, step)
        self.ops.choose(mine, step, hot, rule.sink, rule.window_of(mine.run), work)
        self.ops.swap_in(mine, self.layers[layer].host, slots, starts, step, hot, rule.sink, work)
        self.ops.seat(mine, step, hot, work)

    def _every(self, mine: LayerIndex, step: StepTables) -> StepTables:
        """The step, as one in which it is every head's turn."""
        turn = -mine.turn % EVERY[-1]
        return replace(step, clock=self.turns[turn : turn + 1])

    def find(
        self, layer: int, step: DecodeStep, tables: StepTables, q: torch.Tensor, scale: float
    ) -> Arrivals | None:  # fmt: skip
        return self._find(layer, step, tables, q, scale)

    def glance(
        self, layer: int, step: DecodeStep, tables: StepTables, q: torch.Tensor, scale: float
    ) -> Arrivals | None:  # fmt: skip
        # In the lane what came to the step's own requests takes its places first.
        return self._find(layer, step, self._every(self.index[layer], tables), q, scale, passing=True)

    def _find(
        self, layer: int, step: DecodeStep, tables: StepTables, q: torch.Tensor, scale: float, passing: bool = False
    ) -> Arrivals | None:  # fmt: skip
        """What heads want and lack, on its way; `passing`: as of `ops.choose`."""
        mine, hot, work = self.index[layer], self.cache.hot, step.work
        if not mine.heads.numel():
            return None
        sink, window = self.settings.rule.sink, self.settings.rule.window_of(mine.run)
        self.lane.follow(mark(self.device))
        with self.lane:
            self.ops.probe(q, mine, step.slots, step.starts, tables, scale, sink, window, work)
            self.ops.choose(mine, tables, hot, sink, window, work, passing=passing)
            host = self.layers[layer].host
            self.ops.swap_in(mine, host, step.slots, step.starts, tables, hot, sink, work, passing=passing)
        return Arrivals(mine, work, self.lane.mark())

    def attended(self, layer: int, tables: StepTables, arrivals: Arrivals | None) -> None:
        if arrivals is not None:
            self.lane.follow(mark(self.device))
            with self.lane:
                self.ops.seat(arrivals.layer, tables, self.cache.hot, arrivals.work)
            self.seated = self.lane.mark()
        if self.known is not None:
            self.known.hold(self.device)
            self.known = None
        if layer == len(self.index) - 1:  # the next layer's search comes after this one's in the lane
            self.settle()

    def settle(self) -> None:
        if self.seated is not None:
            self.seated.hold(self.device)
            self.seated = None
