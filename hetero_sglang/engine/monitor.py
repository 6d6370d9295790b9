"""The drift monitor: each pivot watches, on its satellites' behalf, whether attention has moved."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

import torch

from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config.layout import LayerLayout
from hetero_sglang.config.settings import Settings
from hetero_sglang.engine.reassign import EVERY, OWN, Reassigner
from hetero_sglang.selection.scores import observed_weights, overlap, pool_average
from hetero_sglang.transfer.fetcher import Anchor, Fetcher, Want


@dataclass
class Watch:
    """One satellite, as seen by its pivot: the overlaps of its latest looks, and looks since it was last refilled."""

    overlaps: deque[float]
    age: int = 0


class DriftMonitor:
    """Compares what pivots look at with what their satellites hold (paper section on drift) and asks for fetches."""

    def __init__(self, settings: Settings, fetcher: Fetcher, hot: HotPool, counters: Counters) -> None:
        self.settings = settings
        self.clusters = Reassigner(hot, counters)
        self.fetcher = fetcher
        self.hot = hot
        self.counters = counters

    def due(self, ws: WorkingSet, length: int) -> bool:
        """Whether this decode step is one at which pivots look."""
        if not self.settings.retrieves or (length - ws.prompt) % self.settings.monitor_interval:
            return False
        return bool(ws.refillable(length).any())

    def look(
        self, ws: WorkingSet, layer: int, q: torch.Tensor, k: torch.Tensor, others: torch.Tensor, scale: float
    ) -> None:
        """One look of every pivot of a layer, before its compressed heads attend.

        q [R, G, D], k [L, R, D]: the resident heads' queries and keys; others [C, G, D]: the compressed heads' queries.
        """
        spec = self.settings.layout.layers[layer]
        if not spec.clusters:
            return
        pivots = list(spec.pivots)
        weights = observed_weights(q[None, pivots], k[:, pivots], scale, "max").cpu()  # [clusters, G, L]
        seen, scores = weights.amax(1), pool_average(weights).amax(1)  # [clusters, L]
        tickets: list[int] = []
        open_ = ws.refillable(ws.slots.numel())
        for index in range(len(spec.clusters)):
            members = [i for i in self.clusters.members(ws, spec, index) if open_[spec.first + i]]
            wants = [
                want for satellite in members if (want := self._watch(ws, spec, satellite, seen[index], scores[index]))
            ]
            self.counters.drift_triggers += len(wants)
            if wants and (ticket := self.fetcher.want(ws, layer, wants)) is not None:
                tickets.append(ticket)
        if self.settings.waits:
            self.fetcher.wait(tickets)
        if self.settings.reassign and self._looks(ws) % EVERY == 0:
            self.clusters.check(ws, spec, others, seen, scale, self.settings.drift_threshold)

    def _watch(
        self, ws: WorkingSet, spec: LayerLayout, satellite: int, seen: torch.Tensor, scores: torch.Tensor
    ) -> Want | None:
        """What a satellite wants, by its pivot's `scores` [L], if the pivot's attention `seen` [L] lies elsewhere."""
        number = spec.first + satellite
        watch = ws.drift.get(number)
        if watch is None:
            watch = ws.drift[number] = Watch(deque(maxlen=self.settings.history))
        held = self.hot.position.view(-1)[ws.flat(number, torch.arange(ws.caps[number]))].long().cpu()
        self.counters.drift_checks += 1
        watch.age += 1
        watch.overlaps.append(overlap(seen, held))
        if median(watch.overlaps) >= self.settings.drift_threshold or number in ws.busy:
            return None
        del ws.drift[number]
        return Want(satellite, number, scores, watch.age)

    def _looks(self, ws: WorkingSet) -> int:
        return (ws.slots.numel() - ws.prompt) // self.settings.monitor_interval

    def refresh_anchors(self, ws: WorkingSet, layer: int, q: torch.Tensor, scale: float) -> None:
        """Heads without a pivot: now and then the worker scores them on the host. q [C, G, D]: compressed heads."""
        spec = self.settings.layout.layers[layer]
        every = self.settings.monitor_interval * self.settings.anchor_interval
        if not every or (ws.slots.numel() - ws.prompt) % every:
            return
        open_ = ws.refillable(ws.slots.numel())
        anchors = [
            Anchor(layer, head, spec.first + head, (q[head].float() * scale).cpu())
            for head in range(len(spec.compressed))
            if self.clusters.leader(ws, spec, head) == OWN and open_[spec.first + head]
        ]
        self.fetcher.refresh(ws, anchors)
