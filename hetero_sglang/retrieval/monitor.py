"""The drift monitor: each pivot watches, on its cluster's behalf, whether attention has moved."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

import torch

from hetero_sglang.memory.layout import Cluster
from hetero_sglang.memory.working_set import WorkingSet
from hetero_sglang.metrics import Counters
from hetero_sglang.policy.scores import attention_scores, overlap, top_positions
from hetero_sglang.retrieval.fetcher import Fetcher, Want
from hetero_sglang.settings import Settings


@dataclass
class ClusterState:
    """A pivot's reference: its top tokens when the satellites were last filled, and the overlaps seen since."""

    reference: torch.Tensor  # positions
    overlaps: deque[float]
    age: int = 0  # looks since the satellites were last scored


class DriftMonitor:
    """Compares pivots with their references (paper section on drift detection) and asks for fetches."""

    def __init__(self, settings: Settings, fetcher: Fetcher, counters: Counters) -> None:
        self.settings = settings
        self.fetcher = fetcher
        self.counters = counters

    def watched(self, ws: WorkingSet, cluster: Cluster, first: int) -> int:
        """Size of the top set a pivot is judged by: what its best-off satellite selects; 0 when none has a choice."""
        sizes = [ws.selected_rows(first + s).numel() for s in cluster.satellites]
        return max(sizes, default=0)

    def begin(self, ws: WorkingSet, layer: int, scores: torch.Tensor) -> None:
        """At prefill end: remember what each pivot looks at; scores [clusters, L], in the layout's order."""
        spec = self.settings.layout.layers[layer]
        for index, cluster in enumerate(spec.clusters):
            size = self.watched(ws, cluster, spec.first)
            if size:
                reference = top_positions(scores[index], size)
                ws.drift[layer, index] = ClusterState(reference, deque(maxlen=self.settings.history))

    def due(self, ws: WorkingSet, length: int) -> bool:
        """Whether this decode step is one at which pivots look."""
        step = length - ws.prompt
        return self.settings.retrieves and not ws.exact(length) and step % self.settings.monitor_interval == 0

    def look(
        self,
        ws: WorkingSet,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        scale: float,
    ) -> None:
        """One look of every pivot of a layer. q [R, G, D], k [L, R, D]: the resident heads' query and keys."""
        spec = self.settings.layout.layers[layer]
        if not spec.clusters:
            return
        pivots = list(spec.pivots)
        scores = attention_scores(q[None, pivots], k[:, pivots], scale).cpu()  # [clusters, L]
        for index, cluster in enumerate(spec.clusters):
            size = self.watched(ws, cluster, spec.first)
            if size == 0:
                continue
            now = top_positions(scores[index], size)
            state = ws.drift.get((layer, index))
            if state is None:  # a request that started exact has just outgrown its working set
                ws.drift[layer, index] = ClusterState(now, deque(maxlen=self.settings.history))
                continue
            self.counters.drift_checks += 1
            state.age += 1
            state.overlaps.append(overlap(now, state.reference))
            numbers = {spec.first + s for s in cluster.satellites}
            if median(state.overlaps) < self.settings.drift_threshold and not numbers & ws.busy:
                self.counters.drift_triggers += 1
                wants = [Want(s, spec.first + s, scores[index]) for s in cluster.satellites]
                self.fetcher.want(ws, layer, [w for w in wants if ws.has_choice(w.number)], state.age)
                ws.drift[layer, index] = ClusterState(now, deque(maxlen=self.settings.history))

    def refresh_anchors(self, ws: WorkingSet, layer: int, q: torch.Tensor, scale: float) -> None:
        """Anchors have no pivot: now and then the worker scores them on the host. q [C, G, D]: compressed heads."""
        spec = self.settings.layout.layers[layer]
        every = self.settings.monitor_interval * self.settings.anchor_interval
        if not every or (ws.slots.numel() - ws.prompt) % every:
            return
        for head in spec.anchors:
            number = spec.first + head
            if ws.has_choice(number):
                self.fetcher.refresh(ws, layer, head, number, (q[head].float() * scale).cpu())
