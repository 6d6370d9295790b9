"""Satellites that no longer look where their pivot looks get another pivot, or are left to themselves.

Not in the paper, whose clusters stay as they were calibrated. What is compared is attention on the satellite's own
working set, where both are known. Every step computes it, in torch of fixed shapes; every few looks it is read."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from hetero_sglang.cache.lanes import Mark, download, mark
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config.layout import OWN
from hetero_sglang.engine.finder import Parts, pieces
from hetero_sglang.ops.base import LayerPivots, StepTables
from hetero_sglang.ops.step import DecodeStep

EVERY = 2  # looks between two checks
CHECKS = 3  # whose median decides
LOST, FOUND = 0.2, 0.4  # agreement below which a pivot is left, and from which one is taken


def agreement(own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """How much of their attention two heads put on the same tokens: own [..., n], others [..., n] >= 0 -> [...].

    The common part of both, each scaled to sum 1; a head that sees none of the tokens agrees with nobody."""
    tiny = torch.finfo(own.dtype).tiny
    own, others = own / own.sum(-1, keepdim=True).clamp(min=tiny), others / others.sum(-1, keepdim=True).clamp(min=tiny)
    return torch.minimum(own, others).sum(-1)


@dataclass(frozen=True)
class _Check:
    """Agreements [Hc, P] of a request's heads at `length` tokens, once `ready`; -1 where nothing can be told."""

    ws: WorkingSet
    length: int
    agreed: torch.Tensor
    ready: Mark


class Reassign:
    """Who follows whom, per request; the layout's clusters until something is found out."""

    def __init__(self, parts: Parts, leader: torch.Tensor, pivots: list[LayerPivots]) -> None:
        """leader [requests, Hc] int32 on the device, which is kept up to date."""
        self.parts, self.cache, self.leader, self.pivots = parts, parts.cache, leader, pivots
        self.settings, self.device = parts.cache.settings, leader.device
        self.satellites = [
            (n, i) for n, x in enumerate(self.settings.layout.layers) for i, own in enumerate(x.leader) if own != OWN
        ]
        self.moved: dict[WorkingSet, dict[tuple[int, int], int]] = {}
        self.seen: dict[WorkingSet, dict[tuple[int, int], deque[list[float]]]] = {}
        self.checks: list[_Check] = []
        self.last: tuple[DecodeStep, list[tuple[int, WorkingSet, int]]] | None = None

    def room(self, batch: int) -> torch.Tensor:
        """For a step's agreements: [Hc, batch, P], -1 where nothing can be told."""
        most = max(x.head.numel() for x in self.pivots)
        return torch.full((self.leader.shape[1], batch, most), -1.0, device=self.device)

    def orphans(self, ws: WorkingSet) -> list[tuple[int, int]]:
        """Heads of a request that no pivot speaks for any more: layer, and index among its compressed heads."""
        return [head for head, leader in self.moved.get(ws, {}).items() if leader == OWN]

    def begin(self, step: DecodeStep, known: Sequence[WorkingSet], lengths: Sequence[int]) -> None:
        """Before a step: read what the one before found, decide by what has come."""
        every = self.settings.monitor_interval * EVERY
        if self.last is not None:
            ran, requests = self.last
            for row, ws, length in requests:
                if ws.alive and (length - ws.prompt) % every == 0 and ws.refillable(length).any():
                    agreed = download(ran.work.agreed[:, row])
                    self.checks.append(_Check(ws, length, agreed, mark(self.device)))
        self.last = step, list(zip(range(len(known)), known, lengths, strict=True))
        while self.checks and self.checks[0].ready.passed:
            check = self.checks.pop(0)
            if check.ws.alive:
                self._take(check)
        for store in (self.moved, self.seen):
            for ws in [ws for ws in store if not ws.alive]:
                del store[ws]

    def compare(self, layer: int, step: DecodeStep, tables: StepTables, q: torch.Tensor, scale: float) -> None:
        """Agreements of a layer's satellites with its pivots, after they were refilled; q [B, Hq, D]."""
        buffers, pivots = self.parts.layers[layer], self.pivots[layer].head.numel()
        rows = step.longest if step.fixed else int(tables.cap[:, buffers.numbers].max())  # asked of the device once
        token = 8 * q.shape[2] * (buffers.compressed.numel() + 3 * pivots)  # bytes at a time: keys in float32, twice
        for some in pieces(tables.length.numel(), token * step.longest):
            agreed = self._agreed(layer, step, tables, q, scale, some, rows)
            step.work.agreed[buffers.numbers, some, :pivots] = agreed.transpose(0, 1)

    def _agreed(
        self, layer: int, step: DecodeStep, tables: StepTables, q: torch.Tensor, scale: float, some: slice, rows: int
    ) -> torch.Tensor:
        """Of some of the requests, b in all, whose heads hold at most `rows` rows: [b, C, P], -1 where nothing can be
        told."""
        buffers, pivots, hot = self.parts.layers[layer], self.pivots[layer], self.cache.hot
        grouped, length = q[some].unflatten(1, (-1, self.parts.group)).float(), tables.length[some].long()
        at = torch.arange(step.longest, device=self.device)
        slots = step.slots[(step.starts[some, None] + at).clamp(max=step.slots.numel() - 1).long()].long()
        there = at < length[:, None]  # [b, L]
        places = torch.where(there, slots, 0)[..., None], pivots.place.long()
        keys = buffers.resident_k[places].float()  # [b, L, P, D]
        logits = torch.einsum("bpgd,blpd->bpgl", grouped[:, pivots.head.long()], keys) * scale
        seen = logits.masked_fill(~there[:, None, None], float("-inf")).softmax(-1).nan_to_num().amax(2)  # [b, P, L]
        cap, start = tables.cap[some, buffers.numbers].long(), tables.page_start[some, buffers.numbers].long()  # [b, C]
        row = torch.arange(rows, device=self.device)
        held = row < torch.minimum(cap, length[:, None])[..., None]  # [b, C, S]
        listed = (start[..., None] + row // hot.page_size).clamp(max=tables.page_list.numel() - 1)
        flat = torch.where(held, tables.page_list[listed].long() * hot.page_size + row % hot.page_size, 0)
        token = torch.where(held, hot.position.view(-1)[flat].long(), 0).clamp(0, step.longest - 1)
        mine = torch.where(held[..., None], hot.k.view(-1, hot.k.shape[-1])[flat].float(), 0.0)  # [b, C, S, D]
        own = torch.einsum("bcgd,bcsd->bcgs", grouped[:, buffers.compressed], mine) * scale
        own = own.masked_fill(~held[:, :, None], float("-inf")).softmax(-1).nan_to_num().amax(2)  # [b, C, S]
        every = seen[:, None].expand(-1, cap.shape[1], -1, -1)  # [b, C, P, L]
        theirs = every.gather(3, token[:, :, None].expand(-1, -1, seen.shape[1], -1)) * held[:, :, None]  # [b, C, P, S]
        covered = theirs.sum(-1) / seen.sum(-1)[:, None]  # a head is judged while it holds what its pivot looks at
        return torch.where(covered >= self.settings.drift_threshold, agreement(own[:, :, None], theirs), -1.0)

    def _take(self, check: _Check) -> None:
        layers, open_ = self.settings.layout.layers, check.ws.refillable(check.length)
        for layer, head in self.satellites:
            spec = layers[layer]
            agreed = check.agreed[spec.first + head, : len(spec.clusters)].tolist()
            now = self.moved.get(check.ws, {}).get((layer, head), spec.leader[head])
            if open_[spec.first + head] and (now == OWN or agreed[now] >= 0):
                self._decide(check.ws, layer, head, now, [max(0.0, each) for each in agreed])

    def _decide(self, ws: WorkingSet, layer: int, head: int, now: int, agreed: list[float]) -> None:
        """By the median of the latest checks: stay, follow another pivot, or none."""
        seen = self.seen.setdefault(ws, {}).setdefault((layer, head), deque(maxlen=CHECKS))
        seen.append(agreed)
        typical = [median(each) for each in zip(*seen, strict=True)]
        if len(seen) < CHECKS or (now != OWN and typical[now] >= LOST):
            return
        best = max(range(len(typical)), key=typical.__getitem__)
        new = best if typical[best] >= FOUND else OWN
        if new == now:
            return
        self.cache.counters.reassigned += new != OWN
        self.cache.counters.orphaned += new == OWN
        self.moved.setdefault(ws, {})[layer, head] = new
        self.leader[ws.slot, self.settings.layout.layers[layer].first + head] = new
        seen.clear()
