"""Tokens that the worker ranks for heads without a pivot, beside decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config.settings import Settings
from hetero_sglang.ops.reference.attention import POOL
from hetero_sglang.transfer.client import Failed, RetrievalClient, ScoreItem


@dataclass(frozen=True)
class Asked:
    ws: WorkingSet
    heads: list[tuple[int, int]]
    slots: torch.Tensor
    generations: torch.Tensor


@dataclass(frozen=True)
class Ranked:
    ws: WorkingSet
    layer: int
    head: int
    positions: torch.Tensor
    scores: torch.Tensor
    length: int


class Ranking:
    def __init__(self, settings: Settings, host: HostStore, counters: Counters) -> None:
        self.settings, self.host, self.counters = settings, host, counters
        self.client: RetrievalClient | None = None
        self.asked: dict[int, Asked] = {}

    def start_worker(self) -> None:
        if self.client is None:
            self.client = RetrievalClient(self.host, 4096, threads=self.settings.worker_threads)

    def _number(self, layer: int, head: int) -> int:
        return self.settings.layout.layers[layer].first + head

    def ask(self, ws, slots, heads, queries, topk) -> None:
        free = [i for i, (layer, head) in enumerate(heads) if self._number(layer, head) not in ws.busy]
        if self.client is None or not free:
            return
        wanted = [ScoreItem(*heads[i], queries[i].numpy(), topk[i], POOL) for i in free]
        ticket = self.client.score(slots.numpy(), wanted)
        if ticket is None:
            self.counters.refused_fetches += 1
            return
        self.counters.anchor_refreshes += len(free)
        self.asked[ticket] = Asked(ws, [heads[i] for i in free], slots, self.host.stamp(slots))
        ws.busy |= {self._number(*heads[i]) for i in free}

    def poll(self) -> list[Ranked]:
        out = []
        if self.client is None:
            return out
        for done in self.client.poll():
            asked = self.asked.pop(done.ticket)
            asked.ws.busy -= {self._number(*h) for h in asked.heads}
            if isinstance(done, Failed):
                self.counters.failed_fetches += 1
            elif asked.ws.alive and bool(self.host.unchanged(asked.slots, asked.generations).all()):
                for (layer, head), p, s in zip(asked.heads, done.positions, done.scores):
                    out.append(Ranked(asked.ws, layer, head, p, s, asked.slots.numel()))
        self.counters.worker_restarts = self.client.stats.restarts
        return out

    @property
    def under_way(self) -> int:
        return len(self.asked)

    def stats(self):
        return {
            "rankings_under_way": self.under_way,
            "worker_up": bool(self.client and self.client.stats.worker_up),
            "worker_pid": (self.client.pid or 0) if self.client else 0,
        }

    def check_integrity(self, idle: bool) -> None:
        if idle and any(a.ws.alive for a in self.asked.values()):
            raise RuntimeError("rankings")

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None
