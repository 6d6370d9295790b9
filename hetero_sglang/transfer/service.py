"""Worker side: the loop that answers requests."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hetero_sglang.transfer import protocol, scoring
from hetero_sglang.transfer.channel import MOST_BYTES, ended
from hetero_sglang.transfer.gather import HostRows, Piece, cut
from hetero_sglang.transfer.protocol import ProtocolError
from hetero_sglang.transfer.spec import WorkerSpec

_MOST_RUNNING = protocol.MOST_PENDING + 16  # pings are answered, too
_REASON = 1000  # characters of an error


class Service:
    """Answers requests about one host store. Whatever a request holds, the answer is a reply."""

    def __init__(self, spec: WorkerSpec, end: socket.socket) -> None:
        self._spec, self._end = spec, end
        layout = spec.layout
        # The host store is mapped read-only: nothing that happens here can damage it.
        host = mmap.mmap(spec.host_fd, max(1, layout.nbytes), mmap.MAP_SHARED, mmap.PROT_READ)
        self._staging = mmap.mmap(spec.staging_fd, max(1, spec.staging_rows * layout.row_bytes))
        self._scores = mmap.mmap(spec.score_fd, max(1, spec.score_bytes))
        self._rows = HostRows(host, layout)
        self._gatherers = ThreadPoolExecutor(spec.threads, "gather")
        # Threads of their own: a fetch never waits for a refresh.
        self._scorers = ThreadPoolExecutor(max(1, spec.threads // 2), "score")
        self._sending = asyncio.Lock()
        self._room = asyncio.Semaphore(_MOST_RUNNING)

    async def run(self) -> None:
        """Say hello, answer until killed or until the client closes its end, as it does however it goes."""
        self._end.setblocking(False)
        await self._send(protocol.pack(protocol.Hello(self._spec.incarnation)))
        loop = asyncio.get_running_loop()
        running: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references
        while True:
            await self._room.acquire()
            message = await loop.sock_recv(self._end, MOST_BYTES + 1)
            if not message and ended(self._end):
                os._exit(0)
            task = asyncio.create_task(self._reply(message))
            running.add(task)
            task.add_done_callback(running.discard)

    async def _reply(self, message: bytes) -> None:
        await self._send(await self.answer(message))
        self._room.release()

    async def _send(self, reply: bytes) -> None:
        async with self._sending:
            try:
                await asyncio.get_running_loop().sock_sendall(self._end, reply)
            except OSError:  # nobody is there any more
                os._exit(0)

    async def answer(self, message: bytes) -> bytes:
        """The reply to a request."""
        ticket = protocol.NO_TICKET
        try:
            if len(message) > MOST_BYTES:
                raise ProtocolError(f"a message of more than {MOST_BYTES} bytes")
            request = protocol.read_request(message)
            if isinstance(request, protocol.Ping):
                return protocol.pack(protocol.Pong(self._spec.incarnation, request.number))
            ticket = request.ticket
            if isinstance(request, protocol.Fetch):
                return await self._fetch(request, message)
            return await self._score(request, message)
        except Exception as error:
            reason = str(error) if isinstance(error, ProtocolError) else f"{type(error).__name__}: {error}"
            return protocol.pack(protocol.Error(self._spec.incarnation, ticket, reason[:_REASON]))

    async def _fetch(self, request: protocol.Fetch, message: bytes) -> bytes:
        rows = sum(item.rows for item in request.items)
        if request.start + rows > self._spec.staging_rows:
            raise ProtocolError(f"staging has {self._spec.staging_rows} rows, not {request.start + rows}")
        # Copied, as the rows go where they lie.
        (told,) = protocol.get(self._staging, request.start * self._spec.layout.row_bytes, (np.int32, rows))
        slots = told.astype(np.int64)
        self._rows.check(request.items, slots)
        out = self._rows.staging(self._staging, request.start, rows)

        def copy(pieces: list[Piece]) -> None:
            for piece in pieces:
                self._rows.copy(piece, slots, out)

        loop = asyncio.get_running_loop()
        shares = cut(request.items, self._spec.threads)
        copies = [loop.run_in_executor(self._gatherers, copy, share) for share in shares]
        # An error reply promises that nobody writes any more, so all copies are waited for first.
        for outcome in await asyncio.gather(*copies, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        done = protocol.Done(self._spec.incarnation, request.ticket, rows, protocol.checksum(message, told))
        return protocol.pack(done)

    async def _score(self, request: protocol.Score, message: bytes) -> bytes:
        dim = self._spec.layout.head_dim
        told, queries = protocol.get(
            self._scores,
            request.start,
            (np.int32, request.rows),
            (np.float32, sum(item.group for item in request.items) * dim),
        )
        echo = protocol.checksum(message, told, queries)
        slots = told.astype(np.int64)
        self._rows.check(request.items, slots)
        loop, searches = asyncio.get_running_loop(), []
        for item in request.items:
            query, queries = np.split(queries, [item.group * dim])
            searches.append(loop.run_in_executor(self._scorers, self._search, item, slots, query.reshape(-1, dim)))
        chosen = await asyncio.gather(*searches)
        positions = [np.empty(0, np.int32), *(pair[0] for pair in chosen)]
        scores = [np.empty(0, np.float32), *(pair[1] for pair in chosen)]
        protocol.put(self._scores, request.start, np.concatenate(positions), np.concatenate(scores))
        counts = [len(positions) for positions, _ in chosen]
        return protocol.pack(protocol.Scored(self._spec.incarnation, request.ticket, counts, echo))

    def _search(self, item: protocol.Query, slots: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        index = self._rows.index(item.layer, item.head, slots)
        rows = self._rows
        return scoring.score(rows.rows[item.layer], rows.k_words, self._spec.layout.dtype, index, query, item)
