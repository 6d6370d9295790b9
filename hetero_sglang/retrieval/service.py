"""Worker side: the loop that answers requests."""

from __future__ import annotations

import asyncio
import mmap
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import zmq
import zmq.asyncio

from hetero_sglang.retrieval import protocol, scoring
from hetero_sglang.retrieval.gather import HostRows, Piece, cut
from hetero_sglang.retrieval.protocol import ProtocolError
from hetero_sglang.retrieval.spec import WorkerSpec


class Service:
    """Answers requests about one host store. Whatever a request holds, the answer is a reply."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        layout = spec.layout
        # The host store is mapped read-only: nothing that happens here can damage it.
        host = mmap.mmap(spec.host_fd, max(1, layout.nbytes), mmap.MAP_SHARED, mmap.PROT_READ)
        self._staging = mmap.mmap(spec.staging_fd, max(1, spec.staging_rows * layout.row_bytes))
        self._rows = HostRows(host, layout)
        self._gatherers = ThreadPoolExecutor(spec.threads, "gather")
        # Threads of their own: a fetch never waits for a refresh.
        self._scorers = ThreadPoolExecutor(max(1, spec.threads // 2), "score")

    async def run(self) -> None:
        """Connect, say hello, answer until killed."""
        socket = zmq.asyncio.Context().socket(zmq.DEALER)
        socket.connect(self._spec.address)
        hello = protocol.Hello(self._spec.incarnation, os.getpid(), self._spec.token)
        await socket.send_multipart(protocol.pack(hello))
        # The client's end of this pipe closes with the client, however it goes.
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), os._exit, 0)
        running: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references
        while True:
            task = asyncio.create_task(self._reply(socket, await socket.recv_multipart()))
            running.add(task)
            task.add_done_callback(running.discard)

    async def _reply(self, socket: zmq.asyncio.Socket, frames: list[bytes]) -> None:
        await socket.send_multipart(await self.answer(frames))

    async def answer(self, frames: list[bytes]) -> list[bytes]:
        """Frames of the reply to a request's frames."""
        ticket = protocol.NO_TICKET
        try:
            request = protocol.read_request(frames)
            if isinstance(request, protocol.Ping):
                return protocol.pack(protocol.Pong(self._spec.incarnation, request.number))
            ticket = request.ticket
            if isinstance(request, protocol.Fetch):
                return await self._fetch(request, frames)
            return await self._score(request, frames)
        except Exception as error:
            reason = str(error) if isinstance(error, ProtocolError) else f"{type(error).__name__}: {error}"
            return protocol.pack(protocol.Error(self._spec.incarnation, ticket, reason))

    async def _fetch(self, request: protocol.Fetch, frames: list[bytes]) -> list[bytes]:
        rows = sum(item.rows for item in request.items)
        (slots,) = protocol.arrays(frames, (np.int64, rows))
        self._rows.check(request.items, slots)
        if request.start + rows > self._spec.staging_rows:
            raise ProtocolError(f"staging has {self._spec.staging_rows} rows, not {request.start + rows}")
        k, v = self._rows.staging(self._staging, request.start, rows)

        def copy(pieces: list[Piece]) -> None:
            for piece in pieces:
                self._rows.copy(piece, slots, k, v)

        loop = asyncio.get_running_loop()
        shares = cut(request.items, self._spec.threads)
        copies = [loop.run_in_executor(self._gatherers, copy, share) for share in shares]
        # An error reply promises that nobody writes any more, so all copies are waited for first.
        for outcome in await asyncio.gather(*copies, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        done = protocol.Done(self._spec.incarnation, request.ticket, rows, protocol.checksum(frames))
        return protocol.pack(done)

    async def _score(self, request: protocol.Score, frames: list[bytes]) -> list[bytes]:
        dim = self._spec.layout.head_dim
        slots, queries = protocol.arrays(
            frames, (np.int32, request.rows), (np.float32, sum(item.group for item in request.items) * dim)
        )
        slots = slots.astype(np.int64)
        self._rows.check(request.items, slots)
        loop, searches = asyncio.get_running_loop(), []
        for item in request.items:
            query, queries = np.split(queries, [item.group * dim])
            searches.append(loop.run_in_executor(self._scorers, self._search, item, slots, query.reshape(-1, dim)))
        chosen = await asyncio.gather(*searches)
        scored = protocol.Scored(
            self._spec.incarnation,
            request.ticket,
            [len(positions) for positions, _ in chosen],
            protocol.checksum(frames),
        )
        positions = _join([pair[0] for pair in chosen], np.int32)
        return protocol.pack(scored, positions, _join([pair[1] for pair in chosen], np.float32))

    def _search(self, item: protocol.Query, slots: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        index = self._rows.index(item.layer, item.head, slots)
        return scoring.score(self._rows.k[item.layer], self._spec.layout.dtype, index, query, item)


def _join(parts: list[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *parts])
