"""Fetches under way: asked of the worker during a step, published into the hot pool between steps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hetero_sglang.memory.host_store import HostStore
from hetero_sglang.memory.hot_pool import HotPool
from hetero_sglang.memory.lanes import upload
from hetero_sglang.memory.working_set import WorkingSet
from hetero_sglang.metrics import Counters
from hetero_sglang.policy.accumulate import Refill, accumulate, replace
from hetero_sglang.policy.scores import POOL
from hetero_sglang.retrieval.client import Failed, Fetched, FetchItem, RetrievalClient, Scored, ScoreItem
from hetero_sglang.settings import Settings

_PATIENCE = 5.0  # seconds a step may wait for its rows before it goes on without them; a dead worker is known sooner
# Tests that compare tokens between runs wait for every fetch between steps.
WAIT = os.environ.get("HETERO_WAIT_FOR_FETCH") == "1"


@dataclass(frozen=True)
class Swap:
    """Tokens that one compressed head is to take in: hot row `rows[i]` gets the token at `positions[i]`. All [n]."""

    layer: int
    head: int  # among the layer's compressed heads
    number: int  # among the rank's
    rows: torch.Tensor  # flat hot rows
    positions: torch.Tensor
    scores: torch.Tensor
    slots: torch.Tensor  # token slots


@dataclass
class PendingFetch:
    """Rows on their way: staging row i goes to hot row `rows[i]` and holds the token at `positions[i]`."""

    working_set: WorkingSet
    rows: torch.Tensor  # [n] flat hot rows
    positions: torch.Tensor  # [n]
    scores: torch.Tensor  # [n]
    slots: torch.Tensor  # [n]
    generations: torch.Tensor  # [n], of the slots when asked
    numbers: set[int]  # heads being refilled
    late: bool = False


@dataclass
class PendingScore:
    """An anchor's refresh: the worker is looking for its best tokens."""

    working_set: WorkingSet
    layer: int
    head: int
    number: int
    slots: torch.Tensor  # [L] when asked
    generations: torch.Tensor  # [L]


@dataclass
class Want:
    """One compressed head to be refilled from `scores` [L]: `head` within the layer, `number` in the rank.

    `age`: looks since it was last scored.
    """

    head: int
    number: int
    scores: torch.Tensor
    age: int = 1


@dataclass
class Fetcher:
    """Owns the worker's client and everything outstanding."""

    settings: Settings
    host: HostStore
    hot: HotPool
    counters: Counters
    client: RetrievalClient | None = None
    fetches: dict[int, PendingFetch] = field(default_factory=dict)
    scores: dict[int, PendingScore] = field(default_factory=dict)

    def start_worker(self, pin: bool = False) -> None:
        """Start the retrieval worker; nothing waits for it."""
        if not self.settings.retrieves or self.client is not None:
            return
        row = sum(s.shape[-1] * s.element_size() for s in (self.hot.k, self.hot.v))
        rows = max(4096, (self.settings.staging_mb << 20) // row)
        self.client = RetrievalClient(self.host, rows, threads=self.settings.worker_threads, pin=pin)

    def want(self, ws: WorkingSet, layer: int, wants: list[Want]) -> int | None:
        """Choose the rows that `wants` replaces and ask the worker for what the heads do not hold yet.

        Returns the fetch's ticket, None where none was made.
        """
        swaps: list[Swap] = []
        for want in wants:
            if want.number in ws.busy:
                continue
            refill, rows = self._refill(ws, want)
            picked = ws.slots[refill.positions]
            swap = Swap(
                layer, want.head, want.number, rows[refill.victims], refill.positions, refill.scores, picked
            )
            swaps.append(swap)
        return self.ask(ws, swaps)

    def ask(self, ws: WorkingSet, swaps: list[Swap]) -> int | None:
        """Ask the worker for these tokens of a request; their heads are busy until it has answered.

        Returns the fetch's ticket, None where none was made.
        """
        swaps = [swap for swap in swaps if swap.positions.numel()]
        if not swaps or self.client is None:
            return None
        ticket = self.client.fetch([FetchItem(s.layer, s.head, s.slots.numpy()) for s in swaps])
        if ticket is None:
            self.counters.refused_fetches += 1
            return None
        self.counters.fetches += 1
        slots = torch.cat([s.slots for s in swaps])
        self.fetches[ticket] = PendingFetch(
            ws,
            rows=torch.cat([s.rows for s in swaps]),
            positions=torch.cat([s.positions for s in swaps]),
            scores=torch.cat([s.scores for s in swaps]),
            slots=slots,
            generations=self.host.stamp(slots),
            numbers={s.number for s in swaps},
        )
        ws.busy |= self.fetches[ticket].numbers
        return ticket

    def settle(self, seconds: float = 30.0) -> None:
        """Publish as answers come until nothing is under way."""
        self._until(lambda: not self.under_way, seconds)

    def wait(self, tickets: list[int]) -> None:
        """Publish as answers come until those of `tickets` have, or the worker has had its time."""
        self._until(lambda: not any(t in self.fetches for t in tickets), _PATIENCE)

    def _until(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.client is not None and not done() and time.monotonic() < deadline:
            self._poll()
            time.sleep(0.0002)

    def _poll(self) -> None:
        for done in self.client.poll():
            self._complete(done)

    def _refill(self, ws: WorkingSet, want: Want) -> tuple[Refill, torch.Tensor]:
        rows = ws.flat(want.number, ws.selected_rows(want.number))  # [n] flat
        held = self.hot.position.view(-1)[rows].long()
        low = self.settings.rule.sink
        high = min(want.scores.numel(), ws.slots.numel() - self.settings.rule.window)  # older than the ring
        if self.settings.retrieval == "replace":
            refill = replace(held, want.scores, low, high, self.settings.refill_rows)
        else:
            held_scores = self.hot.score.view(-1)[rows]
            decay = self.settings.decay**want.age
            refill = accumulate(held, held_scores, want.scores, low, high, decay, self.settings.refill_rows)
        self.hot.score.view(-1)[rows] = refill.held_scores
        return refill, rows

    def refresh(self, ws: WorkingSet, layer: int, head: int, number: int, query: torch.Tensor) -> None:
        """Ask the worker which tokens an anchor looks at now; query [G, D] float32, already scaled."""
        if self.client is None or number in ws.busy:
            return
        topk = ws.selected_rows(number).numel()
        ticket = self.client.score([ScoreItem(layer, head, ws.slots.numpy(), query.numpy(), topk, POOL)])
        if ticket is None:
            self.counters.refused_fetches += 1
            return
        self.counters.anchor_refreshes += 1
        self.scores[ticket] = PendingScore(ws, layer, head, number, ws.slots, self.host.stamp(ws.slots))
        ws.busy.add(number)

    @property
    def under_way(self) -> int:
        """Requests that the worker has not answered, or whose rows have not reached the hot pool."""
        return len(self.fetches) + len(self.scores)

    def publish(self) -> None:
        """Between two steps: scatter what has arrived, count what has not."""
        if self.client is None:
            return
        self._poll()
        if WAIT:
            self.settle()
        for pending in self.fetches.values():
            if not pending.late:
                pending.late = True
                self.counters.late_fetches += 1
        self.counters.worker_restarts = self.client.stats.restarts

    def _complete(self, done: Fetched | Scored | Failed) -> None:
        if done.ticket in self.fetches:
            pending = self.fetches.pop(done.ticket)
            if isinstance(done, Fetched):
                self._arrived(pending, done)
            else:
                pending.working_set.busy -= pending.numbers
                self.counters.failed_fetches += 1
        elif done.ticket in self.scores:
            asked = self.scores.pop(done.ticket)
            asked.working_set.busy.discard(asked.number)
            if isinstance(done, Scored):
                self._rank(asked, done)
            else:
                self.counters.failed_fetches += 1

    def _arrived(self, pending: PendingFetch, done: Fetched) -> None:
        self._land(pending, done.ticket, done.k, done.v)

    def _land(self, pending: PendingFetch, ticket: int, k: torch.Tensor, v: torch.Tensor) -> None:
        pending.working_set.busy -= pending.numbers
        self._scatter(pending, k, v)
        self.client.release(ticket)

    def _scatter(self, pending: PendingFetch, k: torch.Tensor, v: torch.Tensor) -> None:
        """Rows into the hot pool, but for those whose slot was freed meanwhile: k [n, D], v [n, Dv], any device."""
        valid = self.host.unchanged(pending.slots, pending.generations)
        if not pending.working_set.alive:
            valid = torch.zeros_like(valid)
        self.counters.dropped_rows += int((~valid).sum())
        if not bool(valid.any()):
            return
        device = self.hot.k.device
        rows, positions, scores = pending.rows, pending.positions.to(torch.int32), pending.scores
        if not bool(valid.all()):
            picked = valid.nonzero()[:, 0]
            rows, positions, scores = rows[picked], positions[picked], scores[picked]
            picked = upload(picked, k.device)
            k, v = k[picked], v[picked]
        rows = upload(rows, device)
        self.hot.write(rows, k.to(device), v.to(device))
        self.hot.position.view(-1)[rows] = upload(positions, device)
        self.hot.score.view(-1)[rows] = upload(scores, device)
        self.counters.fetched_rows += rows.numel()
        self.counters.fetched_bytes += k.numel() * k.element_size() + v.numel() * v.element_size()

    def _rank(self, asked: PendingScore, done: Scored) -> None:
        ws = asked.working_set
        if not ws.alive or not bool(self.host.unchanged(asked.slots, asked.generations).all()):
            return
        scores = torch.zeros(asked.slots.numel(), dtype=torch.float32)
        scores[torch.as_tensor(done.positions[0]).long()] = torch.as_tensor(done.scores[0])
        self.want(ws, asked.layer, [Want(asked.head, asked.number, scores)])

    def stats(self) -> dict[str, int | bool]:
        return {
            "fetches_under_way": self.under_way,
            "worker_up": bool(self.client and self.client.stats.worker_up),
            "worker_pid": (self.client.pid or 0) if self.client else 0,
        }

    def check_integrity(self, idle: bool) -> None:
        """When idle, what is still under way must belong to requests that have ended."""
        if idle and any(p.working_set.alive for p in (*self.fetches.values(), *self.scores.values())):
            raise RuntimeError(f"{len(self.fetches)} fetches are under way for requests although none is live")

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None
