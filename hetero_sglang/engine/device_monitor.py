"""The drift monitor of a device: what DriftMonitor does, between steps, without waiting for anything.

After a step at which a request's pivots look, kernels compare what they look at with what their satellites hold
(ops/triton/look.py). The overlaps go to pinned memory and are read when they are there, a step later; then
the device chooses the rows of the satellites that have drifted, and their positions come out the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.lanes import Mark, download, mark, upload
from hetero_sglang.cache.resident_store import ResidentStore
from hetero_sglang.cache.sizes import LOOK_WORKSPACE
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config import development
from hetero_sglang.config.settings import Settings
from hetero_sglang.engine.glances import Crowd, Subject, View
from hetero_sglang.ops.triton.look import look
from hetero_sglang.selection.batched import refill
from hetero_sglang.transfer.device_fetcher import DeviceFetcher
from hetero_sglang.transfer.fetcher import Anchor, Swap
from hetero_sglang.transfer.write_back import WriteBack

_AT_ONCE = 64  # heads whose rows are chosen in one go
_ROWS_AT_ONCE = 8192  # of a fetch: more would make the first heads wait for the last
_PATIENCE = 30.0  # seconds for all that was asked for, where a step waits


@dataclass
class History:
    """One request's satellites as their pivots saw them: overlaps of the latest looks, and looks since a refill."""

    overlaps: np.ndarray  # [history, Hc], NaN where there was no look
    age: np.ndarray  # [Hc]

    @classmethod
    def empty(cls, looks: int, heads: int) -> History:
        return cls(np.full((looks, heads), np.nan), np.zeros(heads, dtype=np.int64))

    def note(self, numbers: np.ndarray, overlaps: np.ndarray) -> np.ndarray:
        """One more look; the median overlap of each head in its latest looks since its last refill."""
        looks = len(self.overlaps)
        self.overlaps[self.age[numbers] % looks, numbers] = overlaps
        self.age[numbers] += 1
        known = np.sort(self.overlaps[:, numbers], axis=0)  # NaN last
        count, at = np.minimum(self.age[numbers], looks), np.arange(numbers.size)
        return (known[(count - 1) // 2, at] + known[count // 2, at]) / 2

    def forget(self, number: int) -> int:
        """The head is refilled: looks since the last time."""
        self.overlaps[:, number] = np.nan
        age, self.age[number] = int(self.age[number]), 0
        return age


@dataclass(frozen=True)
class Choice:
    """One head to be refilled by `scores` [length]: where they begin in the workspace, or positions [k] and scores [k]
    of those above 0, on the host.

    None: by any; the rate is forced, and the rows' number counts alone.
    """

    ws: WorkingSet
    number: int
    length: int
    fading: float  # of the held rows' scores
    scores: int | tuple[torch.Tensor, torch.Tensor] | None


@dataclass(frozen=True)
class Looking:
    """Overlaps on their way: `overlaps` [S] once `ready`, the views' satellites in turn."""

    views: list[View]
    overlaps: torch.Tensor
    ready: Mark


@dataclass(frozen=True)
class Choosing:
    """Rows on their way: `places` [3, W, M] (hot rows, positions, token slots) and `scores` [W, M] once `ready`."""

    choices: list[Choice]
    places: torch.Tensor
    scores: torch.Tensor
    ready: Mark


@dataclass(frozen=True)
class Asking:
    """A request's token slots [L], and the queries [A, G, D] of its anchors, on their way to the worker."""

    ws: WorkingSet
    numbers: list[int]  # [A] compressed heads of the rank
    queries: torch.Tensor
    slots: torch.Tensor
    ready: Mark


class DeviceMonitor:
    """Used from the scheduler's thread, on the stream of the forward passes."""

    def __init__(
        self, settings: Settings, resident: ResidentStore, hot: HotPool, tables: DeviceTables, rows: DeviceFetcher,
        counters: Counters, host_rows: WriteBack, context: int, group: int, floats: int = LOOK_WORKSPACE // 4,
    ) -> None:  # fmt: skip
        """`context`: the longest request, in tokens; `group`: query heads of a KV head."""
        self.host_rows, self.context = host_rows, context
        self.settings, self.hot, self.tables, self.fetcher, self.counters = settings, hot, tables, rows, counters
        self.group, self.device = group, hot.k.device
        self.crowd = Crowd(settings.layout, resident)
        self.anchors = self._anchors()
        space = max(floats if self.crowd.numbers.size else 0, self.crowd.most_floats(context, group))
        self.workspace = torch.empty(space, dtype=torch.float32, device=self.device)
        self.random = np.random.default_rng(0)
        self.queue: list[Subject] = []
        self.queries: torch.Tensor | None = None  # [layers, batch, Hq, D] of the last step
        self.req_to_token: torch.Tensor | None = None
        self.scale = 1.0
        self.looking: Looking | None = None
        self.choosing: list[Choosing] = []
        self.asking: list[Asking] = []

    def _anchors(self) -> np.ndarray:
        layers = self.settings.layout.layers
        return np.array([x.first + i for x in layers for i, leader in enumerate(x.leader) if leader < 0], dtype=int)

    # ---- around steps

    def runs(
        self, requests: list[WorkingSet], lengths: list[int], queries: torch.Tensor, req_to_token: torch.Tensor
    ) -> None:
        """A step runs: the request of each of its rows and its length by then; queries are set aside in `queries`."""
        self.queries, self.req_to_token = queries, req_to_token
        rows = {ws: (row, length) for row, (ws, length) in enumerate(zip(requests, lengths, strict=True))}
        for subject in self.queue:  # what did not fit before looks with the queries there are now
            subject.row, subject.length = rows.get(subject.ws, (-1, 0))
        self.queue = [subject for subject in self.queue if subject.row >= 0]
        waiting = {subject.ws for subject in self.queue}
        self.queue += [
            Subject(ws, row, length)
            for ws, (row, length) in rows.items()
            if self._due(ws, length) and ws not in waiting
        ]

    def _due(self, ws: WorkingSet, length: int) -> bool:
        return (length - ws.prompt) % self.settings.monitor_interval == 0 and bool(ws.refillable(length).any())

    def tick(self) -> None:
        """Before the next step: go on with whatever has come out of the device or the worker."""
        self.fetcher.publish()
        self.queue = [subject for subject in self.queue if subject.ws.alive]
        self.advance()
        if self.settings.waits or development.waits():
            deadline = time.monotonic() + _PATIENCE
            while self.under_way() and time.monotonic() < deadline:
                self.fetcher.settle()
                self.advance()

    def under_way(self) -> bool:
        ours = self.queue or self.looking or self.choosing or self.asking
        return bool(ours or self.fetcher.ranked or self.fetcher.under_way)

    def advance(self) -> None:
        if self.looking and self.looking.ready.passed:
            looking, self.looking = self.looking, None
            self.choose(self._decide(looking))
        # Many together: all of a round, or as many as the worker has got through.
        ranked, whole = self.fetcher.ranked, not (self.asking or self.fetcher.scores)
        if ranked and (whole or len(ranked) >= _AT_ONCE):
            self.fetcher.ranked = ranked[_AT_ONCE:]
            self.choose(
                [
                    Choice(r.ws, r.number, r.length, self._fading(1), (r.positions, r.scores))
                    for r in ranked[:_AT_ONCE]
                    if r.ws.alive
                ]
            )
        self.choosing = self._finish(self.choosing, self._fetch)
        if self.asking and self.asking[0].ready.passed:  # one at a time: a step has room for the work of one
            self._refresh(self.asking.pop(0))
        if self.queue and self.looking is None:
            self._look()

    @staticmethod
    def _finish(under_way: list, finish: Callable) -> list:
        done = 0
        while done < len(under_way) and under_way[done].ready.passed:
            finish(under_way[done])
            done += 1
        return under_way[done:]

    # ---- what happened to satellites

    def _look(self) -> None:
        self._ask_anchors([s for s in self.queue if not s.asked])
        if not self.crowd.numbers.size:
            self.queue.clear()
            return
        glance, views = self.crowd.glance(self.queue, self.workspace.numel(), self.group)
        widest = max(max(view.ws.caps) for view in views)
        overlaps = look(
            glance, self.crowd.pivots, self.queries, self.req_to_token, self.tables, self.hot.position,
            self.workspace, self.group, widest, self.scale,
        )  # fmt: skip
        self.looking = Looking(views, download(overlaps), mark(self.device))

    def _decide(self, looking: Looking) -> list[Choice]:
        """The satellites whose pivots look elsewhere, by the median of their latest looks."""
        overlaps, choices, start, rate = looking.overlaps.numpy(), [], 0, development.fetch_rate()
        for view in looking.views:
            mine = overlaps[start : start + view.numbers.size]
            start += view.numbers.size
            if not view.ws.alive or not view.numbers.size:
                continue
            open_ = view.ws.refillable(view.length)[view.numbers]
            numbers, scores = view.numbers[open_], view.scores[open_]
            history = view.ws.history
            if history is None:
                history = view.ws.history = History.empty(self.settings.history, len(view.ws.caps))
            typical = history.note(numbers, mine[open_])
            self.counters.drift_checks += numbers.size
            drifted = typical < self.settings.drift_threshold
            if rate is not None:
                drifted = self.random.random(numbers.size) < rate
            for number, start_of in zip(numbers[drifted].tolist(), scores[drifted].tolist(), strict=True):
                if number not in view.ws.busy:
                    age = history.forget(number)
                    by = (self._fading(age), start_of) if rate is None else (0.0, None)
                    choices.append(Choice(view.ws, number, view.length, *by))
        self.counters.drift_triggers += len(choices)
        return choices

    def _fading(self, age: int) -> float:
        return 0.0 if self.settings.retrieval == "replace" else self.settings.decay**age

    # ---- anchors, which the worker scores

    def _ask_anchors(self, subjects: list[Subject]) -> None:
        every = self.settings.monitor_interval * self.settings.anchor_interval
        for subject in subjects:
            subject.asked = True
        asked = [
            (s, self.anchors[s.ws.refillable(s.length)[self.anchors]].tolist())
            for s in subjects
            if every and (s.length - s.ws.prompt) % every == 0
        ]
        asked = [(s, numbers) for s, numbers in asked if numbers]
        if not asked:
            return
        assert self.queries is not None and self.req_to_token is not None  # of the step that let them ask
        layers = self.settings.layout.layers
        places = [(s.row, self.crowd.place[number]) for s, numbers in asked for number in numbers]
        index = [(layer, row, layers[layer].compressed[head]) for row, (layer, head) in places]
        layer, row, head = upload(torch.tensor(index), self.device).T
        queries = self.queries.unflatten(2, (-1, self.group))[layer, row, head].float() * self.scale  # [sum A, G, D]
        queries = download(queries).split([len(numbers) for _, numbers in asked])
        slots = [download(self.req_to_token[s.ws.slot, : s.length]) for s, _ in asked]
        self.host_rows.hold()  # the worker scores every token
        ready = mark(self.device)
        self.asking += [
            Asking(s.ws, numbers, q, own, ready) for (s, numbers), q, own in zip(asked, queries, slots, strict=True)
        ]

    def _refresh(self, asking: Asking) -> None:
        if not asking.ws.alive:
            return
        asking.ws.slots = asking.slots.long()
        self.fetcher.refresh(
            asking.ws,
            [Anchor(*self.crowd.place[n], n, query) for n, query in zip(asking.numbers, asking.queries, strict=True)],
        )

    # ---- rows that come

    def choose(self, choices: list[Choice]) -> None:
        for start in range(0, len(choices), _AT_ONCE):
            self._choose_some(choices[start : start + _AT_ONCE])

    def _choose_some(self, choices: list[Choice]) -> None:
        """The device picks who goes and who comes; heads are busy from now on."""
        assert self.req_to_token is not None  # of the step that was looked at
        rule, hot = self.settings.rule, self.hot
        wide = max(c.ws.caps[c.number] for c in choices) - rule.sink - rule.window
        numbers = [[c.ws.slot, c.number, c.length - rule.window, c.length] for c in choices]
        slot, number, high, length = upload(torch.tensor(numbers), self.device).T  # [W]
        row = torch.arange(wide, device=self.device) + rule.sink  # [N] in working-set order
        cap = self.tables.cap[slot, number][:, None]
        there = row < cap - rule.window  # [W, N]
        listed = self.tables.page_start[slot, number][:, None] + torch.where(there, row, rule.sink) // hot.page_size
        flat = self.tables.page_list[listed].long() * hot.page_size + row % hot.page_size
        flat = torch.where(there, flat, flat[:, :1])
        held = hot.position.view(-1)[flat].long()
        fading = [c.fading for c in choices]
        kept = hot.score.view(-1)[flat] * upload(torch.tensor(fading), self.device)[:, None]
        scores = self._scores(choices, length)  # [W, L]
        swaps = refill(held.masked_fill(~there, -1), kept, scores, rule.sink, high, self.settings.refill_rows)
        # Padding repeats a head's first row, with the same value.
        hot.score.view(-1)[flat] = torch.where(there, swaps.kept, swaps.kept[:, :1])
        comes = swaps.positions.clamp(min=0)
        token_slots = self.req_to_token[slot[:, None], comes]
        places = torch.stack((flat.gather(1, swaps.victims), swaps.positions, token_slots.long()))  # [3, W, M]
        self.choosing.append(Choosing(choices, download(places), download(swaps.scores), mark(self.device)))
        for choice in choices:
            choice.ws.busy.add(choice.number)

    def _scores(self, choices: list[Choice], length: torch.Tensor) -> torch.Tensor:
        """What decides over each head's tokens: [W, L] float32, 0 beyond its length. All choices are of one kind."""
        given, longest = [c.scores for c in choices], max(c.length for c in choices)
        lists = [one for one in given if isinstance(one, tuple)]
        if lists:
            at, values = (
                upload(pad_sequence([one[i] for one in lists], batch_first=True, padding_value=beyond), self.device)
                for i, beyond in enumerate((longest, 0.0))
            )
            scores = torch.zeros(len(choices), longest + 1, device=self.device)  # the last column takes the padding
            return scores.scatter_(1, at.long(), values)[:, :longest]
        at = torch.arange(longest, device=self.device)
        within = at < length[:, None]
        if given[0] is None:
            return torch.rand(len(choices), longest, device=self.device).masked_fill(~within, 0.0)
        where = upload(torch.tensor(given), self.device)[:, None] + at
        return torch.where(within, self.workspace[torch.where(within, where, 0)], 0.0)

    def _fetch(self, chosen: Choosing) -> None:
        """Ask the worker for what was chosen, some thousands of rows at once."""
        counts = (chosen.places[1] >= 0).sum(1).tolist()  # those that come are each head's first, best first
        swaps: list[Swap] = []
        waiting = 0  # rows of `swaps`
        for index, (choice, count) in enumerate(zip(chosen.choices, counts, strict=True)):
            choice.ws.busy.discard(choice.number)
            if choice.ws.alive:
                rows, positions, slots = chosen.places[:, index, :count]
                place = self.crowd.place[choice.number]
                swaps.append(
                    Swap(choice.ws, *place, choice.number, rows, positions, chosen.scores[index, :count], slots)
                )
                waiting += count
            if waiting >= _ROWS_AT_ONCE:
                self.fetcher.ask(swaps)
                swaps, waiting = [], 0
        self.fetcher.ask(swaps)
