"""The scheduler's side of the retrieval worker: hand in requests, poll for what came of them, never wait."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer import process, protocol
from hetero_sglang.transfer.process import WorkerProcess
from hetero_sglang.transfer.protocol import ProtocolError, Query
from hetero_sglang.transfer.scratch import Scratch
from hetero_sglang.transfer.supervisor import Supervisor

_ROUNDS = 12  # timeouts that a request may take of a worker which gives signs of life
_SCRATCH = 128 << 20  # bytes for questions and answers under way


@dataclass(frozen=True)
class Scored:
    """Per item: positions [k] int32 into the slots, ascending, and their scores [k] float32."""

    ticket: int
    positions: list[torch.Tensor]
    scores: list[torch.Tensor]


@dataclass(frozen=True)
class Failed:
    """Nothing came of the request; `reason` is one sentence."""

    ticket: int
    reason: str


@dataclass(frozen=True)
class _Pending:
    """A request the worker has: `counts` rows of each item's `length` are due at `loan`."""

    loan: range
    length: int
    counts: list[int]
    echo: int
    since: float


class RetrievalClient:
    """Ranks rows of `store` through a worker process that it keeps alive.

    Use it from the thread that made it. A worker that dies, stalls or answers wrongly loses its tickets
    (`Failed`) and is replaced by `poll`. The worker reads `store` as it is: ask for a slot only once the
    device's copy to it is done."""

    def __init__(
        self,
        store: HostStore,
        threads: int = 2,
        timeout_s: float = 5.0,
        command: Sequence[str] = process.COMMAND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """HeteroError when shared memory cannot be had; a worker that does not start is only logged.

        A worker that gives no sign of life is killed 0.8 `timeout_s` after it was last asked for anything, or when
        `poll` is called next; another is up within the rest of it."""
        self._store, self._threads, self._timeout = store, threads, timeout_s
        self._command, self._clock = command, clock
        self._scratch = Scratch(_SCRATCH)
        self._closed = False
        self._tickets = 0
        self._pending: dict[int, _Pending] = {}  # oldest first
        self._completed_at = self._clock()
        self._supervisor = Supervisor(self._launch)
        self._supervisor.tend(self._clock())

    @property
    def up(self) -> bool:
        """Whether there is a worker that said hello."""
        return self._supervisor.up

    @property
    def restarts(self) -> int:
        """Workers started after the first."""
        return self._supervisor.restarts

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        worker = self._supervisor.worker
        return worker.pid if worker is not None else None

    def score(
        self, slots: np.ndarray | torch.Tensor, items: Sequence[Query], queries: np.ndarray | torch.Tensor, pool: int
    ) -> int | None:
        """Ticket of a search for each item's best rows among slots [L], on the CPU; min(topk, L) of them come back.

        queries: [items, G, D] float32, already times the softmax scale; `pool`: the (odd) width of the average over
        neighbouring slots. None: no worker is up, or too much is under way."""
        worker = self._supervisor.worker
        if worker is None or not worker.up or len(self._pending) >= protocol.MOST_PENDING:
            return None
        told, asked = np.ascontiguousarray(slots, np.int32), np.ascontiguousarray(queries, np.float32)
        counts = [min(told.size, item.topk) for item in items]
        loan = self._scratch.lend(max(told.nbytes + asked.nbytes, 8 * sum(counts)))  # the answer takes the same place
        if loan is None:
            return None
        score = protocol.Score(self._tickets, loan.start, told.size, asked.shape[1], pool, list(items))
        message = protocol.pack(score)
        protocol.put(self._scratch.memory.buffer, loan.start, told, asked.ravel())
        if not worker.send(message):
            self._scratch.take_back(loan)
            return None
        echo = protocol.checksum(message, told, asked)
        self._pending[self._tickets] = _Pending(loan, told.size, counts, echo, self._clock())
        self._tickets += 1
        return self._tickets - 1

    def poll(self) -> list[Scored | Failed]:
        """What was completed or lost since the last call; also looks after the worker."""
        if self._closed:
            return []
        completions = self._drain()
        # Overdue is judged after reading: a scheduler that was busy for long must not blame the worker.
        now = self._clock()
        if (loss := self._supervisor.tend(now) or self._stuck(now)) is not None:
            completions += self._lose(loss)
        return completions

    def close(self) -> None:
        """End the worker and give its memory back. Tickets still out are forgotten."""
        if self._closed:
            return
        self._closed = True
        self._supervisor.close(timeout_s=2.0)
        self._scratch.close()

    def _launch(self) -> WorkerProcess:
        self._scratch.take_all_back()  # the worker before this one is gone: it cannot write there any more
        scratch, host = self._scratch.memory, self._store.memory
        spec = protocol.WorkerSpec(self._threads, host.fd, scratch.fd, scratch.nbytes, self._store.layout())
        return WorkerProcess(spec, self._command, self._timeout, self._clock)

    def _drain(self) -> list[Scored | Failed]:
        completions: list[Scored | Failed] = []
        worker = self._supervisor.worker
        try:
            for reply in worker.receive() if worker is not None else ():
                completions.append(self._take(reply))
        except ProtocolError as lie:
            completions += self._lose(f"answered wrongly ({lie})")
        return completions

    def _take(self, reply: protocol.Scored | protocol.Error) -> Scored | Failed:
        """What a reply completes. ProtocolError when it does not fit what was asked."""
        pending = self._pending.get(reply.ticket)
        if pending is None:
            reason = reply.reason if isinstance(reply, protocol.Error) else "nothing is known of it"
            raise ProtocolError(f"ticket {reply.ticket}: {reason}")
        completion: Scored | Failed
        if isinstance(reply, protocol.Error):
            completion = Failed(reply.ticket, reply.reason)
        elif reply.echo != pending.echo or reply.counts != pending.counts:
            raise ProtocolError(f"ticket {reply.ticket} answers another request")
        else:
            memory = self._scratch.memory.buffer
            found = protocol.get_scored(memory, pending.loan.start, pending.length, pending.counts)
            completion = Scored(reply.ticket, *([torch.from_numpy(part) for part in parts] for parts in found))
        del self._pending[reply.ticket]
        self._scratch.take_back(pending.loan)
        self._completed_at = self._clock()
        return completion

    def _stuck(self, now: float) -> str | None:
        """Why the worker has to go although it gives signs of life."""
        oldest = next((pending.since for pending in self._pending.values()), now)
        if now - max(oldest, self._completed_at) > _ROUNDS * self._timeout:
            return f"was at one request for {_ROUNDS * self._timeout:g} s"
        return None

    def _lose(self, reason: str) -> list[Scored | Failed]:
        """Have the worker replaced; all its tickets fail, and their memory waits for its end."""
        self._supervisor.condemn(reason, self._clock())
        lost, self._pending = self._pending, {}
        return [Failed(ticket, f"the retrieval worker {reason}") for ticket in lost]
