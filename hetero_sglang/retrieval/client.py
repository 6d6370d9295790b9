"""The scheduler's side of retrieval: hand in requests, poll for what came of them, never wait."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch

from hetero_sglang.memory.host_store import HostStore
from hetero_sglang.retrieval import items, process, protocol
from hetero_sglang.retrieval.items import (
    ClientStats,
    Completion,
    Failed,
    Fetched,
    FetchItem,
    Scored,
    ScoreItem,
)
from hetero_sglang.retrieval.process import WorkerProcess
from hetero_sglang.retrieval.protocol import ProtocolError
from hetero_sglang.retrieval.spec import HostLayout, WorkerSpec
from hetero_sglang.retrieval.staging import Segment, StagingRing
from hetero_sglang.retrieval.supervisor import Supervisor

_ROUNDS = 12  # timeouts that a request may take of a worker which gives signs of life


@dataclass
class _Pending:
    """A request the worker has; `asked` holds (L, topk) per item of a score request, None for a fetch."""

    rows: int
    segment: Segment | None
    asked: list[tuple[int, int]] | None
    echo: int
    since: float
    abandoned: bool = False


class RetrievalClient:
    """Fetches rows of `store` into staging and scores them, through a worker process it keeps alive.

    Use it from the thread that made it. A worker that dies, stalls or answers wrongly loses its tickets
    (`Failed`) and is replaced by `poll`. The worker reads `store` as it is: ask for a slot only once the
    device's copy to it is done.
    """

    def __init__(
        self,
        store: HostStore,
        staging_rows: int,
        threads: int = 2,
        timeout_s: float = 5.0,
        pin: bool = False,
        command: Sequence[str] = process.COMMAND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """HeteroError when staging cannot be had or pinned; a worker that does not start is only counted."""
        self._layout = msgspec.convert(store.layout(), HostLayout)
        self._store, self._threads, self._timeout = store, threads, timeout_s
        self._command, self._clock = command, clock
        self.ring = StagingRing(staging_rows, store.head_dim, store.v_head_dim, store.dtype, pin)
        self._closed = False
        self._tickets = 0
        self._pending: dict[int, _Pending] = {}  # oldest first
        self._held: dict[int, Segment] = {}  # fetched, until release
        self._quarantine: list[tuple[WorkerProcess, Segment]] = []  # a killed worker may still write there
        self._heard_at = self._completed_at = self._clock()
        self._pinged_at: float | None = None
        self._pings = 0
        self._stats = ClientStats()
        self._supervisor = Supervisor(self._launch)
        self._supervisor.tend(self._clock())

    @property
    def stats(self) -> ClientStats:
        """A copy of the counters."""
        sup = self._supervisor
        return replace(self._stats, restarts=sup.restarts, worker_up=sup.up)

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        worker = self._supervisor.worker
        return worker.pid if worker is not None else None

    def fetch(self, wanted: Sequence[FetchItem]) -> int | None:
        """Ticket of a fetch of the items' rows; None (counted): the worker is not up or staging is full."""
        rows = sum(len(item.slots) for item in wanted)
        segment = self.ring.acquire(rows) if rows and self._supervisor.up else None
        if not self._supervisor.up or (rows and segment is None):
            self._stats.refused += 1
            return None
        frames = items.pack_fetch(self._tickets, segment.start if segment else 0, wanted)
        ticket = self._submit(frames, _Pending(rows, segment, None, protocol.checksum(frames), self._clock()))
        self._stats.fetches += ticket is not None
        return ticket

    def score(self, slots: np.ndarray | torch.Tensor, wanted: Sequence[ScoreItem]) -> int | None:
        """Ticket of a search for each item's best rows among slots [L]; None (counted): the worker is not up."""
        if not self._supervisor.up:
            self._stats.refused += 1
            return None
        asked = [(len(slots), item.topk) for item in wanted]
        frames = items.pack_score(self._tickets, slots, wanted)
        ticket = self._submit(frames, _Pending(0, None, asked, protocol.checksum(frames), self._clock()))
        self._stats.scores += ticket is not None
        return ticket

    def poll(self) -> list[Completion]:
        """What was completed or lost since the last call; also looks after the worker."""
        if self._closed:
            return []
        completions = self._drain()
        # Overdue is judged after reading: a scheduler that was busy for long must not blame the worker.
        now = self._clock()
        if (loss := self._supervisor.tend(now) or self._stall(now)) is not None:
            completions += self._lose(loss)
        self._end_quarantine()
        return completions

    def release(self, ticket: int) -> None:
        """Give a ticket's staging rows back, once the device has copied them; abandons a pending one."""
        if ticket in self._pending:
            self._pending[ticket].abandoned = True
        elif ticket in self._held:
            self.ring.release(self._held.pop(ticket))

    def wait_up(self, timeout_s: float) -> bool:
        """Block until the worker is up, or the time is over; for start-up, when no ticket is out yet."""
        end = time.monotonic() + timeout_s
        while not self._supervisor.up and time.monotonic() < end:
            self.poll()
            time.sleep(0.005)
        return self._supervisor.up

    def close(self) -> None:
        """End the worker and give staging back. Tickets still out are forgotten."""
        if self._closed:
            return
        self._closed = True
        self._supervisor.close(timeout_s=2.0)
        self.ring.close()

    def _launch(self, incarnation: int) -> WorkerProcess:
        self._heard_at, self._pinged_at = self._clock(), None
        spec = WorkerSpec(
            address=process.new_address(),
            token=secrets.token_hex(16),
            incarnation=incarnation,
            parent=os.getpid(),
            threads=self._threads,
            host_fd=self._store.memory.fd,
            staging_fd=self.ring.memory.fd,
            staging_rows=self.ring.rows,
            layout=self._layout,
        )
        try:
            return WorkerProcess(spec, self._command)
        except OSError as error:
            self._stats.last_error = f"the retrieval worker cannot be started ({error})"
            raise

    def _submit(self, frames: list[bytes], pending: _Pending) -> int | None:
        worker = self._supervisor.worker
        assert worker is not None
        if not worker.send(frames):
            if pending.segment is not None:
                self.ring.release(pending.segment)
            self._stats.refused += 1
            return None
        ticket = self._tickets
        self._tickets += 1
        self._pending[ticket] = pending
        return ticket

    def _drain(self) -> list[Completion]:
        completions: list[Completion] = []
        worker = self._supervisor.worker
        if worker is None:
            return completions
        try:
            for frames in worker.receive():
                self._heard_at = self._clock()
                completion = self._take(worker, frames)
                if completion is not None:
                    completions.append(completion)
        except ProtocolError as lie:
            completions += self._lose(f"answered wrongly ({lie})")
        return completions

    def _take(self, worker: WorkerProcess, frames: list[bytes]) -> Completion | None:
        """What a reply completes. ProtocolError when it does not fit what was asked."""
        reply = protocol.read_reply(frames)
        if reply.incarnation != worker.incarnation:
            raise ProtocolError(f"incarnation {reply.incarnation} instead of {worker.incarnation}")
        if isinstance(reply, protocol.Pong):
            if self._pinged_at is None or reply.number != self._pings:
                raise ProtocolError("a pong nobody asked for")
            self._pinged_at = None
            return None
        if isinstance(reply, protocol.Hello):
            raise ProtocolError("a second hello")
        pending = self._pending.get(reply.ticket)
        if pending is None:
            reason = reply.reason if isinstance(reply, protocol.Error) else "nothing is known of it"
            raise ProtocolError(f"ticket {reply.ticket}: {reason}")
        completion = self._complete(reply, frames, pending)
        del self._pending[reply.ticket]
        self._completed_at = self._clock()
        if pending.segment is not None:
            if isinstance(completion, Fetched) and not pending.abandoned:
                self._held[reply.ticket] = pending.segment
            else:
                self.ring.release(pending.segment)
        return None if pending.abandoned else completion

    def _complete(
        self, reply: protocol.Done | protocol.Scored | protocol.Error, frames: list[bytes], pending: _Pending
    ) -> Completion:
        if isinstance(reply, protocol.Error):
            self._stats.failed += 1
            self._stats.last_error = reply.reason
            return Failed(reply.ticket, reply.reason)
        if isinstance(reply, protocol.Done) != (pending.asked is None):
            raise ProtocolError(f"ticket {reply.ticket} asked for something else")
        if reply.echo != pending.echo:
            raise ProtocolError(f"ticket {reply.ticket} answers another request")
        if isinstance(reply, protocol.Scored):
            return Scored(reply.ticket, *items.read_scores(reply, frames, pending.asked or []))
        protocol.arrays(frames)
        if reply.rows != pending.rows:
            raise ProtocolError(f"{reply.rows} rows instead of {pending.rows}")
        self._stats.rows += pending.rows
        self._stats.bytes += pending.rows * self.ring.row_bytes
        segment = pending.segment or Segment(0, 0)
        return Fetched(reply.ticket, *self.ring.views(segment), segment.start)

    def _stall(self, now: float) -> str | None:
        """Why the worker counts as stalled: silent although something was asked, or too long about one request.

        Asks for a sign of life in time: the worker's loop answers that, whatever its threads are busy with.
        """
        worker = self._supervisor.worker
        if worker is None or not worker.up:
            return None
        oldest = next((pending.since for pending in self._pending.values()), now)
        if self._pinged_at is None and now - self._heard_at > self._timeout / 2:
            self._pings += 1
            if worker.send(protocol.pack(protocol.Ping(self._pings))):
                self._pinged_at = now
        # A scheduler that was busy for long asks first, too.
        asked = oldest if self._pinged_at is None else self._pinged_at
        if now - max(asked, self._heard_at) > self._timeout:
            return f"did not answer for {self._timeout:g} s"
        if now - max(oldest, self._completed_at) > _ROUNDS * self._timeout:
            return f"was at one request for {_ROUNDS * self._timeout:g} s"
        return None

    def _lose(self, reason: str) -> list[Completion]:
        """Have the worker replaced; all its tickets fail, and their staging rows wait for its end."""
        worker = self._supervisor.condemn(reason, self._clock())
        lost, self._pending = self._pending, {}
        self._quarantine += [(worker, pending.segment) for pending in lost.values() if pending.segment]
        self._stats.failed += len(lost)
        self._stats.last_error = f"the retrieval worker {reason}"
        told = [ticket for ticket, pending in lost.items() if not pending.abandoned]
        return [Failed(ticket, self._stats.last_error) for ticket in told]

    def _end_quarantine(self) -> None:
        waiting = []
        for worker, segment in self._quarantine:
            if worker.gone():
                self.ring.release(segment)
            else:
                waiting.append((worker, segment))
        self._quarantine = waiting
