"""Heads without a pivot: every few looks the worker ranks a request's tokens for them, and the best come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hetero_sglang.cache.lanes import Mark, download, mark, upload
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config import development
from hetero_sglang.config.layout import OWN
from hetero_sglang.engine.finder import Parts
from hetero_sglang.ops.base import StepTables
from hetero_sglang.ops.step import CLOCK, REQUEST, DecodeStep
from hetero_sglang.transfer.ranking import Ranked, Ranking


@dataclass(frozen=True)
class _Asking:
    """A request's token slots [L] and the queries [A, G, D] of its anchors, on their way from the device."""

    ws: WorkingSet
    heads: list[tuple[int, int]]  # [A] layer, and index among its compressed heads
    queries: torch.Tensor
    slots: torch.Tensor
    ready: Mark


class Anchors:
    """Owns the worker's side of it, and what is under way."""

    def __init__(self, parts: Parts, hold: Callable[[], None]) -> None:
        self.parts, self.cache, self.hold = parts, parts.cache, hold
        self.settings, self.device = parts.cache.settings, parts.cache.hot.k.device
        self.ranking = Ranking(self.settings, self.cache.host, self.cache.counters)
        layers = self.settings.layout.layers
        self.own = [(n, i) for n, x in enumerate(layers) for i, leader in enumerate(x.leader) if leader == OWN]
        self.ranking.start_worker()
        self.more: Callable[[WorkingSet], list[tuple[int, int]]] = lambda ws: []  # heads that have lost their pivot
        self.scale = 1.0
        self.last: tuple[DecodeStep, list[tuple[int, WorkingSet, int]]] | None = None  # who ran: row, request, length
        self.asking: list[_Asking] = []
        self.ranked: list[Ranked] = []
        self.work: Any = None  # counts what comes for rankings apart

    def begin(self, step: DecodeStep, known: Sequence[WorkingSet], lengths: Sequence[int]) -> None:
        """Before a step whose inputs are there: ask about the one before, and bring what was ranked since."""
        rows = {ws: (row, length - 1) for row, (ws, length) in enumerate(zip(known, lengths, strict=True))}
        if self.last is not None:
            ran, before = self.last
            self._ask(step, ran, [(row, rows[ws][0], ws, length) for row, ws, length in before if ws in rows])
        self.last = step, list(zip(range(len(known)), known, lengths, strict=True))
        self.poll()
        now = [ranked for ranked in self.ranked if ranked.ws in rows]
        self.ranked = [ranked for ranked in self.ranked if ranked.ws.alive and ranked.ws not in rows]
        for ws, layer in dict.fromkeys((ranked.ws, ranked.layer) for ranked in now):
            self._bring(step, *rows[ws], ws, layer, [r for r in now if r.ws is ws and r.layer == layer])

    def poll(self) -> None:
        """Send on what has come from the device, take what the worker has ranked."""
        while self.asking and (self.asking[0].ready.passed or development.waits()):
            asking = self.asking.pop(0)
            asking.ready.wait()
            if asking.ws.alive:
                rule, layers = self.settings.rule, self.settings.layout.layers
                caps = [asking.ws.caps[layers[layer].first + head] for layer, head in asking.heads]
                counts = [cap - rule.sink - rule.window for cap in caps]
                self.ranking.ask(asking.ws, asking.slots.long(), asking.heads, asking.queries, counts)
        self.ranked += self.ranking.poll()

    def _ask(self, step: DecodeStep, ran: DecodeStep, before: list[tuple[int, int, WorkingSet, int]]) -> None:
        """Queries of the step that `ran` leave the device, for anchors whose turn it was. Each request of `before`: its
        row then, its row in the coming `step`, and its length then."""
        every, layers = self.settings.monitor_interval * self.settings.anchor_interval, self.settings.layout.layers
        if not self.settings.tuning.retrieval:
            return
        held = False
        for row, now, ws, length in before:
            if (length - ws.prompt) % every:
                continue
            open_ = ws.refillable(length)
            heads = [(n, i) for n, i in (*self.own, *self.more(ws)) if open_[layers[n].first + i]]
            if not heads:
                continue
            if not held:
                self.hold()  # the worker scores every token
                held = True
            queries = ran.work.queries[:, row].unflatten(1, (-1, self.parts.group))  # [layers, H, G, D]
            at = upload(torch.tensor([(n, layers[n].compressed[i]) for n, i in heads]), self.device)
            mine = download(queries[at[:, 0], at[:, 1]].float() * self.scale)
            slots = download(step.slots[now * step.context : now * step.context + length])
            self.asking.append(_Asking(ws, heads, mine, slots, mark(self.device)))

    def _bring(self, step: DecodeStep, row: int, length: int, ws: WorkingSet, layer: int, ranked: list[Ranked]) -> None:
        """Refill a request's anchors of a layer; it has `length` tokens."""
        ops, tables, hot, rule = self.parts.ops, self.parts.tables, self.cache.hot, self.settings.rule
        buffers, slot = self.parts.layers[layer], ws.slot
        now = StepTables(
            upload(torch.tensor([length], dtype=torch.int32), self.device), tables.cap[slot : slot + 1],
            tables.page_start[slot : slot + 1], tables.page_list, step.inputs[CLOCK, :1],
            step.inputs[REQUEST, row : row + 1], tables.came, tables.told,
        )  # fmt: skip
        if self.work is None:
            widest, context = max(layer.heads.numel() for layer in self.parts.layers), self.parts.context
            size = (1, widest, self.parts.group, context, context, 1, self.settings.refill_rows)
            self.work = ops.Workspace(*size, self.device)
        ws.tally.refills += len(ranked)
        fading = 0.0 if self.settings.retrieval == "replace" else self.settings.decay
        self.work.plan(now)
        for each in ranked:
            scores = torch.zeros(length, dtype=torch.float32)
            scores[each.positions.long()] = each.scores
            heads, there = buffers.heads.numel(), upload(scores, self.device)
            self.work.offer(each.head, heads, there, fading, rule.sink, rule.window)
        starts = step.starts[row : row + 1]
        ops.choose(buffers, now, hot, rule.sink, rule.window, self.work, merged=True)
        ops.swap_in(buffers, buffers.host, step.slots, starts, now, hot, rule.sink, self.work, merged=True)
