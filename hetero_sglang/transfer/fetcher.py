"""Fetches under way: asked of the worker during a step, published into the hot pool between steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config import development
from hetero_sglang.config.settings import Settings
from hetero_sglang.selection.accumulate import Refill, accumulate, replace
from hetero_sglang.selection.scores import POOL
from hetero_sglang.transfer.client import Failed, Fetched, FetchItem, RetrievalClient, Scored, ScoreItem

_PATIENCE = 5.0  # seconds a step may wait for its rows before it goes on without them; a dead worker is known sooner


@dataclass(frozen=True)
class Swap:
    """Tokens that one compressed head is to take in: hot row `rows[i]` gets the token at `positions[i]`. All [n]."""

    ws: WorkingSet
    layer: int
    head: int  # among the layer's compressed heads
    number: int  # among the rank's
    rows: torch.Tensor  # flat hot rows
    positions: torch.Tensor
    scores: torch.Tensor
    slots: torch.Tensor  # token slots


@dataclass
class PendingFetch:
    """Rows on their way, head by head in this order."""

    swaps: list[Swap]
    slots: torch.Tensor  # [n] of all
    generations: torch.Tensor  # [n], of the slots when asked
    late: bool = False

    def let_go(self) -> None:
        """The heads may be refilled again."""
        for swap in self.swaps:
            swap.ws.busy.discard(swap.number)

    def joined(self, name: str) -> torch.Tensor:
        """What the swaps hold under this name: [n]."""
        return torch.cat([getattr(swap, name) for swap in self.swaps])

    @property
    def alive(self) -> torch.Tensor:
        """Bool [n]: whether the row's request still runs."""
        counts = torch.tensor([swap.rows.numel() for swap in self.swaps])
        return torch.tensor([swap.ws.alive for swap in self.swaps]).repeat_interleave(counts)


@dataclass(frozen=True)
class Anchor:
    """A head without a pivot: `head` among its layer's compressed heads, `number` among the rank's."""

    layer: int
    head: int
    number: int
    query: torch.Tensor  # [G, D] float32, already scaled


@dataclass
class PendingScore:
    """The worker is looking for the best tokens of a request's anchors."""

    working_set: WorkingSet
    anchors: list[Anchor]
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
            went = rows[refill.victims]
            swaps.append(Swap(ws, layer, want.head, want.number, went, refill.positions, refill.scores, picked))
        return self.ask(swaps)

    def ask(self, swaps: list[Swap]) -> int | None:
        """Ask the worker for these tokens; their heads are busy until it has answered.

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
        self.fetches[ticket] = PendingFetch(swaps, slots, self.host.stamp(slots))
        for swap in swaps:
            swap.ws.busy.add(swap.number)
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
            self._poll(self.client)
            time.sleep(0.0002)

    def _poll(self, client: RetrievalClient) -> None:
        for done in client.poll():
            self._complete(done)

    def _refill(self, ws: WorkingSet, want: Want) -> tuple[Refill, torch.Tensor]:
        rows = ws.flat(want.number, ws.selected_rows(want.number))  # [n] flat
        held = self.hot.position.view(-1)[rows].long().cpu()
        low = self.settings.rule.sink
        high = min(want.scores.numel(), ws.slots.numel() - self.settings.rule.window)  # older than the ring
        if self.settings.retrieval == "replace":
            refill = replace(held, want.scores, low, high, self.settings.refill_rows)
        else:
            held_scores = self.hot.score.view(-1)[rows].cpu()
            decay = self.settings.decay**want.age
            refill = accumulate(held, held_scores, want.scores, low, high, decay, self.settings.refill_rows)
        self.hot.score.view(-1)[rows] = refill.held_scores.to(self.hot.score.device)
        return refill, rows

    def refresh(self, ws: WorkingSet, anchors: list[Anchor]) -> None:
        """Ask the worker which tokens these heads look at now."""
        anchors = [anchor for anchor in anchors if anchor.number not in ws.busy]
        if self.client is None or not anchors:
            return
        wanted = [
            ScoreItem(a.layer, a.head, a.query.numpy(), ws.selected_rows(a.number).numel(), POOL) for a in anchors
        ]
        ticket = self.client.score(ws.slots.numpy(), wanted)
        if ticket is None:
            self.counters.refused_fetches += 1
            return
        self.counters.anchor_refreshes += len(anchors)
        self.scores[ticket] = PendingScore(ws, anchors, ws.slots, self.host.stamp(ws.slots))
        ws.busy |= {anchor.number for anchor in anchors}

    @property
    def under_way(self) -> int:
        """Requests that the worker has not answered, or whose rows have not reached the hot pool."""
        return len(self.fetches) + len(self.scores)

    def publish(self) -> None:
        """Between two steps: scatter what has arrived, count what has not."""
        if self.client is None:
            return
        self._poll(self.client)
        if development.waits():
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
                pending.let_go()
                self.counters.failed_fetches += 1
        elif done.ticket in self.scores:
            asked = self.scores.pop(done.ticket)
            asked.working_set.busy -= {anchor.number for anchor in asked.anchors}
            if isinstance(done, Scored):
                self._rank(asked, done)
            else:
                self.counters.failed_fetches += 1

    def _arrived(self, pending: PendingFetch, done: Fetched) -> None:
        self._land(pending, done.ticket, done.k, done.v)

    def _land(self, pending: PendingFetch, ticket: int, k: torch.Tensor, v: torch.Tensor) -> None:
        pending.let_go()
        self._scatter(pending, k, v)
        if self.client is not None:
            self.client.release(ticket)

    def _scatter(self, pending: PendingFetch, k: torch.Tensor, v: torch.Tensor) -> None:
        """Rows into the hot pool, but for those whose slot was freed meanwhile: k [n, D], v [n, Dv], any device."""
        valid = self.host.unchanged(pending.slots, pending.generations) & pending.alive
        fresh = int(valid.sum())
        self.counters.dropped_rows += valid.numel() - fresh
        if not fresh:
            return
        rows = torch.where(valid, pending.joined("rows"), -1)
        self._put(rows, pending.joined("positions"), pending.joined("scores"), k, v)
        self.counters.fetched_rows += fresh
        self.counters.fetched_bytes += fresh * (k.shape[1] * k.element_size() + v.shape[1] * v.element_size())

    def _put(
        self, rows: torch.Tensor, positions: torch.Tensor, scores: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        """All [n]; row -1 goes nowhere."""
        there = rows >= 0
        rows, device = rows[there], self.hot.k.device
        self.hot.write(rows, k[there].to(device), v[there].to(device))
        self.hot.position.view(-1)[rows] = positions[there].to(device, torch.int32)
        self.hot.score.view(-1)[rows] = scores[there].to(device)

    def _rank(self, asked: PendingScore, done: Scored) -> None:
        ws = asked.working_set
        if not ws.alive or not bool(self.host.unchanged(asked.slots, asked.generations).all()):
            return
        for anchor, positions, found in zip(asked.anchors, done.positions, done.scores, strict=True):
            self._ranked(ws, anchor, positions, found, asked.slots.numel())

    def _ranked(
        self, ws: WorkingSet, anchor: Anchor, positions: torch.Tensor, found: torch.Tensor, length: int
    ) -> None:
        """The best tokens of an anchor, positions [k] of `length`, and their scores [k]."""
        scores = torch.zeros(length, dtype=torch.float32)
        scores[positions.long()] = found
        self.want(ws, anchor.layer, [Want(anchor.head, anchor.number, scores)])

    def stats(self) -> dict[str, int | bool]:
        return {
            "fetches_under_way": self.under_way,
            "worker_up": bool(self.client and self.client.stats.worker_up),
            "worker_pid": (self.client.pid or 0) if self.client else 0,
        }

    def check_integrity(self, idle: bool) -> None:
        """When idle, what is still under way must belong to requests that have ended."""
        alive = any(swap.ws.alive for pending in self.fetches.values() for swap in pending.swaps)
        if idle and (alive or any(pending.working_set.alive for pending in self.scores.values())):
            raise RuntimeError(f"{len(self.fetches)} fetches are under way for requests although none is live")

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None
