"""The scheduler's side of retrieval: hand in requests, poll for what came of them, never wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch

from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer import items, process, protocol
from hetero_sglang.transfer.items import (
    ClientStats,
    Completion,
    Failed,
    Fetched,
    FetchItem,
    Scored,
    ScoreItem,
)
from hetero_sglang.transfer.process import WorkerProcess
from hetero_sglang.transfer.protocol import ProtocolError
from hetero_sglang.transfer.ring import Ring, Segment
from hetero_sglang.transfer.spec import HostLayout, WorkerSpec
from hetero_sglang.transfer.staging import StagingRing
from hetero_sglang.transfer.supervisor import Supervisor

# Shares of the timeout. What is left of it is for the next worker's start, so that a stalled one is replaced in time.
_QUIET = 0.2  # a worker that has been silent for so long is asked for a sign of life
_GRACE = 0.6  # and has so long to give it
_ROUNDS = 12  # timeouts that a request may take of a worker which gives signs of life
_SCORE_MB = 128  # for slots and scores of requests under way; what is not used takes no memory
_PAGE = 4096


@dataclass
class _Pending:
    """A request the worker has; `asked` holds (L, topk) per item of a score request, None for a fetch.

    `segment` of `ring`: where its arrays lie, None when it has none.
    """

    ring: Ring
    segment: Segment | None
    asked: list[tuple[int, int]] | None
    since: float
    echo: int = 0
    abandoned: bool = False

    @property
    def rows(self) -> int:
        return self.segment.rows if self.segment else 0

    @property
    def at(self) -> int:
        """Byte where its arrays begin."""
        return self.segment.start * self.ring.row_bytes if self.segment else 0

    def put(self, *arrays: np.ndarray) -> None:
        protocol.put(self.ring.memory.buffer, self.at, *arrays)

    def give_back(self) -> None:
        """Nobody writes its rows any more, and nobody reads them."""
        if self.segment is not None:
            self.ring.release(self.segment)


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
        """HeteroError when staging cannot be had or pinned; a worker that does not start is only counted.

        A worker that gives no sign of life is killed 0.8 `timeout_s` after it was last asked for anything, or when
        `poll` is called next; another is up within the rest of it.
        """
        self._layout = msgspec.convert(store.layout(), HostLayout)
        self._store, self._threads, self._timeout = store, threads, timeout_s
        self._command, self._clock = command, clock
        self.ring = StagingRing(staging_rows, store.head_dim, store.v_head_dim, store.dtype, pin)
        self.score_ring = Ring("hetero-scores", (_SCORE_MB << 20) // _PAGE, _PAGE)
        self._closed = False
        self._tickets = 0
        self._pending: dict[int, _Pending] = {}  # oldest first
        self._held: dict[int, Segment] = {}  # fetched, until release
        self._quarantine: list[tuple[WorkerProcess, _Pending]] = []  # a killed worker may still write there
        self._heard_at = self._completed_at = self._clock()
        self._asked_at: float | None = None  # for a sign of life, and nothing was heard since
        self._pings = self._pongs = 0
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
        """Ticket of a fetch of the items' rows; None (counted): no worker is up, or too much is under way."""
        slots = items.slots_of(wanted)
        pending = self._room(self.ring, slots.size, None)
        if pending is None:
            return None
        message = items.pack_fetch(self._tickets, pending.segment.start if pending.segment else 0, wanted)
        ticket = self._submit(message, pending, slots)
        self._stats.fetches += ticket is not None
        return ticket

    def score(self, slots: np.ndarray | torch.Tensor, wanted: Sequence[ScoreItem]) -> int | None:
        """Ticket of a search for each item's best rows among slots [L]; None (counted) as `fetch` has it."""
        told, queries = np.asarray(slots, np.int32), items.queries_of(wanted)
        asked = [(told.size, item.topk) for item in wanted]
        nbytes = max(told.nbytes + queries.nbytes, 8 * sum(map(min, asked)))  # the answer takes the question's place
        pending = self._room(self.score_ring, -(-nbytes // _PAGE), asked)
        if pending is None:
            return None
        message = items.pack_score(self._tickets, pending.at, told.size, wanted)
        ticket = self._submit(message, pending, told, queries)
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
        self.score_ring.close()

    def _launch(self, incarnation: int) -> WorkerProcess:
        self._heard_at, self._asked_at, self._pongs = self._clock(), None, self._pings
        spec = WorkerSpec(
            incarnation=incarnation,
            threads=self._threads,
            host_fd=self._store.memory.fd,
            staging_fd=self.ring.memory.fd,
            staging_rows=self.ring.rows,
            score_fd=self.score_ring.memory.fd,
            score_bytes=self.score_ring.memory.nbytes,
            layout=self._layout,
        )
        try:
            return WorkerProcess(spec, self._command)
        except OSError as error:
            self._stats.last_error = f"the retrieval worker cannot be started ({error})"
            raise

    def _room(self, ring: Ring, rows: int, asked: list[tuple[int, int]] | None) -> _Pending | None:
        """A request with `rows` of the ring; None (counted) when it cannot be made now."""
        if self._supervisor.up and len(self._pending) < protocol.MOST_PENDING:
            segment = ring.acquire(rows) if rows else None
            if segment or not rows:
                return _Pending(ring, segment, asked, self._clock())
        self._stats.refused += 1
        return None

    def _submit(self, message: bytes, pending: _Pending, *arrays: np.ndarray) -> int | None:
        worker = self._supervisor.worker
        assert worker is not None
        pending.put(*arrays)
        pending.echo = protocol.checksum(message, *arrays)
        if not worker.send(message):
            pending.give_back()
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
            for message in worker.receive():
                self._heard_at, self._asked_at = self._clock(), None
                completion = self._take(worker, message)
                if completion is not None:
                    completions.append(completion)
        except ProtocolError as lie:
            completions += self._lose(f"answered wrongly ({lie})")
        return completions

    def _take(self, worker: WorkerProcess, message: bytes) -> Completion | None:
        """What a reply completes. ProtocolError when it does not fit what was asked."""
        reply = protocol.read_reply(message)
        if reply.incarnation != worker.incarnation:
            raise ProtocolError(f"incarnation {reply.incarnation} instead of {worker.incarnation}")
        if isinstance(reply, protocol.Pong):
            if self._pongs == self._pings or reply.number != self._pings:
                raise ProtocolError("a pong nobody asked for")
            self._pongs = self._pings
            return None
        if isinstance(reply, protocol.Hello):
            raise ProtocolError("a second hello")
        pending = self._pending.get(reply.ticket)
        if pending is None:
            reason = reply.reason if isinstance(reply, protocol.Error) else "nothing is known of it"
            raise ProtocolError(f"ticket {reply.ticket}: {reason}")
        completion = self._complete(reply, pending)
        del self._pending[reply.ticket]
        self._completed_at = self._clock()
        if isinstance(completion, Fetched) and pending.segment and not pending.abandoned:
            self._held[reply.ticket] = pending.segment
        else:
            pending.give_back()
        return None if pending.abandoned else completion

    def _complete(self, reply: protocol.Done | protocol.Scored | protocol.Error, pending: _Pending) -> Completion:
        if isinstance(reply, protocol.Error):
            self._stats.failed += 1
            self._stats.last_error = reply.reason
            return Failed(reply.ticket, reply.reason)
        if isinstance(reply, protocol.Done) != (pending.asked is None):
            raise ProtocolError(f"ticket {reply.ticket} asked for something else")
        if reply.echo != pending.echo:
            raise ProtocolError(f"ticket {reply.ticket} answers another request")
        if isinstance(reply, protocol.Scored):
            memory = pending.ring.memory.buffer
            return Scored(reply.ticket, *items.read_scores(reply, memory, pending.at, pending.asked or []))
        if reply.rows != pending.rows:
            raise ProtocolError(f"{reply.rows} rows instead of {pending.rows}")
        self._stats.rows += pending.rows
        self._stats.bytes += pending.rows * self.ring.row_bytes
        segment = pending.segment or Segment(0, 0)
        return Fetched(reply.ticket, *self.ring.views(segment), segment.start)

    def _stall(self, now: float) -> str | None:
        """Why the worker counts as stalled: silent although it was asked, or too long about one request.

        Asks for a sign of life in time: the worker's loop answers that, whatever its threads are busy with. A scheduler
        that was busy for long asks first, too.
        """
        worker = self._supervisor.worker
        if worker is None or not worker.up:
            return None
        if self._asked_at is None and now - self._heard_at > _QUIET * self._timeout:
            self._asked_at = now
        if self._asked_at is not None and self._pongs == self._pings:
            self._pings += worker.send(protocol.pack(protocol.Ping(self._pings + 1)))  # else it has enough to answer
        if self._asked_at is not None and now - self._asked_at > _GRACE * self._timeout:
            return f"did not answer for {now - self._asked_at:.1f} s"
        oldest = next((pending.since for pending in self._pending.values()), now)
        if now - max(oldest, self._completed_at) > _ROUNDS * self._timeout:
            return f"was at one request for {_ROUNDS * self._timeout:g} s"
        return None

    def _lose(self, reason: str) -> list[Completion]:
        """Have the worker replaced; all its tickets fail, and their staging rows wait for its end."""
        worker = self._supervisor.condemn(reason, self._clock())
        lost, self._pending = self._pending, {}
        self._quarantine += [(worker, pending) for pending in lost.values()]
        self._stats.failed += len(lost)
        self._stats.last_error = f"the retrieval worker {reason}"
        told = [ticket for ticket, pending in lost.items() if not pending.abandoned]
        return [Failed(ticket, self._stats.last_error) for ticket in told]

    def _end_quarantine(self) -> None:
        waiting = []
        for worker, pending in self._quarantine:
            if worker.gone():
                pending.give_back()
            else:
                waiting.append((worker, pending))
        self._quarantine = waiting
