"""Rankings under way: which tokens a request's anchors look at now, asked of the retrieval worker beside the steps."""

import time
from dataclasses import dataclass

import torch

from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config import development
from hetero_sglang.config.settings import Settings
from hetero_sglang.ops.reference.attention import POOL
from hetero_sglang.transfer.client import Failed, RetrievalClient
from hetero_sglang.transfer.protocol import Query

_PATIENCE = 30.0  # seconds that a run whose tokens are to be compared waits for an answer


@dataclass(frozen=True)
class Asked:
    """What the worker is looking for: the best tokens of a request's anchors, among these slots."""

    ws: WorkingSet
    heads: list[tuple[int, int]]  # layer, and index among its compressed heads
    numbers: set[int]  # of these heads among the rank's compressed ones
    slots: torch.Tensor  # [L] int64, on the CPU
    generations: torch.Tensor  # [L] int32, of the slots when asked
    at: float  # when, by the monotonic clock


@dataclass(frozen=True)
class Ranked:
    """The best tokens of one anchor: `head` among its layer's compressed heads."""

    ws: WorkingSet
    layer: int
    head: int
    positions: torch.Tensor  # [k] int32, ascending
    scores: torch.Tensor  # [k] float32


class Ranking:
    """Owns the worker's client and what it was asked. A head in `ws.busy` is not asked about; one asked about is busy
    until its answer has come, or will not."""

    def __init__(self, settings: Settings, host: HostStore, counters: Counters) -> None:
        self.settings, self.host, self.counters = settings, host, counters
        self.client: RetrievalClient | None = None
        self._asked: dict[int, Asked] = {}  # by ticket

    def start_worker(self) -> None:
        """Start the retrieval worker where one is needed; nothing waits for it. HeteroError without memory for it."""
        if self.settings.retrieves and self.client is None:
            self.client = RetrievalClient(self.host, self.settings.worker_threads)

    def ask(
        self, ws: WorkingSet, slots: torch.Tensor, heads: list[tuple[int, int]], queries: torch.Tensor, topk: list[int]
    ) -> None:
        """Have the best `topk[i]` tokens of `heads[i]` looked for, by layer and index among its compressed heads.

        slots: [L] int64, whose rows are in the host store; queries: [A, G, D] float32, already scaled. Both on the CPU.
        """
        first = [layer.first for layer in self.settings.layout.layers]
        numbers = [first[layer] + head for layer, head in heads]
        free = [at for at, number in enumerate(numbers) if number not in ws.busy]
        if self.client is None or not free:
            return
        items = [Query(*heads[at], topk[at]) for at in free]
        mine, stamp = [heads[at] for at in free], self.host.stamp(slots)
        asked = Asked(ws, mine, {numbers[at] for at in free}, slots, stamp, time.monotonic())
        ticket = self.client.score(slots, items, queries[free], POOL)
        if ticket is None:
            self.counters.refused_rankings += 1
            return
        self._asked[ticket] = asked
        self.counters.anchor_refreshes += len(free)
        ws.busy |= asked.numbers

    def poll(self) -> list[Ranked]:
        """The answers that have come since the last call; waits for others only where runs are to be compared.

        Dropped: those of a request that has ended, or one of whose slots was freed meanwhile."""
        ranked = self._poll()
        deadline = time.monotonic() + _PATIENCE
        while development.waits() and self._asked and time.monotonic() < deadline:
            time.sleep(0.0002)
            ranked += self._poll()
        return ranked

    def _poll(self) -> list[Ranked]:
        if self.client is None:
            return []
        ranked: list[Ranked] = []
        for done in self.client.poll():
            asked = self._asked.pop(done.ticket)
            asked.ws.busy -= asked.numbers
            if isinstance(done, Failed):
                self.counters.failed_rankings += 1
                continue
            self.counters.ranking.add(time.monotonic() - asked.at)
            if asked.ws.alive and bool(self.host.unchanged(asked.slots, asked.generations).all()):
                for (layer, head), positions, scores in zip(asked.heads, done.positions, done.scores, strict=True):
                    ranked.append(Ranked(asked.ws, layer, head, positions, scores))
        self.counters.worker_restarts = self.client.restarts
        return ranked

    @property
    def under_way(self) -> int:
        """Requests that the worker has not answered."""
        return len(self._asked)

    def stats(self) -> dict[str, int | bool]:
        """For /hetero/stats."""
        return {
            "rankings_under_way": self.under_way,
            "worker_up": bool(self.client and self.client.up),
            "worker_pid": (self.client.pid or 0) if self.client else 0,
        }

    def check_integrity(self, idle: bool) -> None:
        """RuntimeError when a ranking is under way for a live request although none is: `idle`."""
        if idle and any(asked.ws.alive for asked in self._asked.values()):
            raise RuntimeError(f"{self.under_way} rankings are under way for requests although none is live")

    def close(self) -> None:
        """End the worker; what it was asked is forgotten."""
        if self.client is not None:
            self.client.close()
            self.client = None
        for asked in self._asked.values():
            asked.ws.busy -= asked.numbers
        self._asked.clear()
