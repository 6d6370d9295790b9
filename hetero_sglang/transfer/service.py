"""Worker side: the loop that answers requests."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hetero_sglang.transfer import protocol
from hetero_sglang.transfer.channel import MOST_BYTES, ended
from hetero_sglang.transfer.protocol import ProtocolError, WorkerSpec
from hetero_sglang.transfer.scoring import HostKeys, score

_MOST_RUNNING = protocol.MOST_PENDING + 16  # pings are answered, too
_REASON = 1000  # characters of an error


class Service:
    """Answers requests about one host store. Whatever a request holds, the answer is a reply."""

    def __init__(self, spec: WorkerSpec, end: socket.socket) -> None:
        self._spec, self._end = spec, end
        # The host store is mapped read-only: nothing that happens here can damage it.
        host = mmap.mmap(spec.host_fd, max(1, spec.layout.nbytes), mmap.MAP_SHARED, mmap.PROT_READ)
        self._keys = HostKeys(host, spec.layout)
        self._scratch = mmap.mmap(spec.scratch_fd, spec.scratch_bytes)
        self._threads = ThreadPoolExecutor(spec.threads, "score")
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
            return await self._score(request, message)
        except Exception as error:
            reason = str(error) if isinstance(error, ProtocolError) else f"{type(error).__name__}: {error}"
            return protocol.pack(protocol.Error(self._spec.incarnation, ticket, reason[:_REASON]))

    async def _score(self, request: protocol.Score, message: bytes) -> bytes:
        dim, groups = self._spec.layout.head_dim, [item.group for item in request.items]
        told, queries = protocol.get(
            self._scratch, request.start, (np.int32, request.length), (np.float32, sum(groups) * dim)
        )
        echo, slots = protocol.checksum(message, told, queries), told.astype(np.int64)
        self._keys.check(request.items, slots)
        loop, ends = asyncio.get_running_loop(), np.cumsum(groups, dtype=np.int64)
        each = np.split(queries.reshape(-1, dim), ends)[:-1]  # what follows the last end is empty
        searches = [
            loop.run_in_executor(self._threads, score, self._keys, item, slots, query)
            for item, query in zip(request.items, each, strict=True)
        ]
        chosen = await asyncio.gather(*searches)
        positions = [np.empty(0, np.int32), *(pair[0] for pair in chosen)]
        scores = [np.empty(0, np.float32), *(pair[1] for pair in chosen)]
        protocol.put(self._scratch, request.start, np.concatenate(positions), np.concatenate(scores))
        counts = [len(positions) for positions, _ in chosen]
        return protocol.pack(protocol.Scored(self._spec.incarnation, request.ticket, counts, echo))
