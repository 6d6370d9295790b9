"""Satellites that no longer look where their pivot looks get another pivot, or are left to themselves.

Not in the paper, whose clusters stay as they were calibrated. A check costs one dot product per row that the
satellite holds: it compares attention on the satellite's own working set, where both are known.
"""

from __future__ import annotations

from collections import deque
from statistics import median

import torch

from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config.layout import OWN, LayerLayout
from hetero_sglang.selection.scores import overlap

EVERY = 2  # looks between two checks
CHECKS = 3  # whose median decides
LOST, FOUND = 0.2, 0.4  # agreement below which a pivot is left, and from which one is taken


def agreement(own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """How much of their attention two heads put on the same tokens: own [n], others [P, n] >= 0 -> [P], in [0, 1].

    The common part of both, each scaled to sum 1; a head that sees none of the tokens agrees with nobody.
    """
    own = own / own.sum().clamp(min=torch.finfo(own.dtype).tiny)
    others = others / others.sum(-1, keepdim=True).clamp(min=torch.finfo(own.dtype).tiny)
    return torch.minimum(own, others).sum(-1)


class Reassigner:
    """Who follows whom, per request; the layout's clusters until something is found out."""

    def __init__(self, hot: HotPool, counters: Counters) -> None:
        self.hot, self.counters = hot, counters

    @staticmethod
    def leader(ws: WorkingSet, spec: LayerLayout, satellite: int) -> int:
        """Index of the cluster that a compressed head of the layer belongs to now, or OWN."""
        return ws.leaders.get(spec.first + satellite, spec.leader[satellite])

    def members(self, ws: WorkingSet, spec: LayerLayout, cluster: int) -> list[int]:
        """Compressed heads of the layer that follow this cluster's pivot now."""
        return [i for i in range(len(spec.compressed)) if self.leader(ws, spec, i) == cluster]

    def check(
        self, ws: WorkingSet, spec: LayerLayout, q: torch.Tensor, seen: torch.Tensor, scale: float, covered: float
    ) -> None:
        """Compare every head that had or has a pivot with all of them.

        q [C, G, D]: the step's queries of the layer's compressed heads; seen [clusters, L]: the pivots' attention, of
        which a head must hold this share, `covered`, before the two can be told apart.
        """
        open_ = ws.refillable(ws.slots.numel())
        for cluster in spec.clusters:
            for satellite in cluster.satellites:
                number = spec.first + satellite
                if not open_[number]:
                    continue
                rows = ws.flat(number, torch.arange(ws.caps[number]))  # sinks and ring too: they may be all it needs
                held = self.hot.position.view(-1)[rows].long().cpu()
                keys = self.hot.k.view(-1, self.hot.k.shape[-1])[rows]
                own = (q[satellite].float() @ keys.float().T * scale).softmax(-1).amax(0).cpu()  # [n]
                known = torch.tensor([overlap(each, held) >= covered for each in seen])  # [clusters]
                now = self.leader(ws, spec, satellite)
                if now == OWN or known[now]:
                    agreed = agreement(own, seen[:, held])
                    self._decide(ws, spec, satellite, torch.where(known, agreed, 0.0))

    def _decide(self, ws: WorkingSet, spec: LayerLayout, satellite: int, agreed: torch.Tensor) -> None:
        number = spec.first + satellite
        seen = ws.agreements.setdefault(number, deque(maxlen=CHECKS))
        seen.append(agreed)
        if len(seen) < CHECKS:
            return
        typical = [median(float(each[p]) for each in seen) for p in range(len(agreed))]
        now = self.leader(ws, spec, satellite)
        if now != OWN and typical[now] >= LOST:
            return
        best = max(range(len(typical)), key=typical.__getitem__)
        if typical[best] >= FOUND:
            ws.leaders[number] = best
            self.counters.reassigned += 1
        elif now != OWN:
            ws.leaders[number] = OWN
            self.counters.orphaned += 1
        else:
            return
        seen.clear()
