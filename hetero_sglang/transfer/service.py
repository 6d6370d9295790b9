"""Worker side: the loop that answers requests."""

import math
import mmap
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from hetero_sglang.transfer import misbehaviour, protocol
from hetero_sglang.transfer.channel import MOST_BYTES, ended
from hetero_sglang.transfer.protocol import ProtocolError, WorkerSpec
from hetero_sglang.transfer.scoring import HostKeys, score

_REASON = 1000  # characters of an error


class Service:
    """Answers requests about one host store. Whatever a request holds, the answer is a reply."""

    def __init__(self, spec: WorkerSpec, end: socket.socket) -> None:
        self._dim, self._end = spec.layout.head_dim, end
        # The host store is mapped read-only: nothing that happens here can damage it.
        host = mmap.mmap(spec.host_fd, max(1, spec.layout.nbytes), mmap.MAP_SHARED, mmap.PROT_READ)
        self._keys = HostKeys(host, spec.layout)
        self._scratch = mmap.mmap(spec.scratch_fd, spec.scratch_bytes)
        self._requests = ThreadPoolExecutor(spec.threads, "request")  # which wait for their searches
        self._searches = ThreadPoolExecutor(spec.threads, "search")
        self._sending = threading.Lock()

    def run(self) -> None:
        """Say hello, answer until killed or until the client closes its end, as it does however it goes."""
        self._send(protocol.Hello())
        while True:
            misbehaviour.before_reading()
            message = self._end.recv(MOST_BYTES + 1)
            if not message and ended(self._end):
                os._exit(0)
            try:
                if len(message) > MOST_BYTES:
                    raise ProtocolError(f"a message of more than {MOST_BYTES} bytes")
                request = protocol.read_request(message)
            except ProtocolError as error:
                self._send(_failure(protocol.NO_TICKET, error))
                continue
            if isinstance(request, protocol.Ping):
                self._send(protocol.Pong(request.number))
            else:
                self._requests.submit(self._serve, request, message)

    def _send(self, reply: protocol.Reply) -> None:
        with self._sending:
            try:
                self._end.sendall(protocol.pack(reply))
            except OSError:  # nobody is there any more
                os._exit(0)

    def _serve(self, request: protocol.Score, message: bytes) -> None:
        reply: protocol.Reply
        misbehaviour.before_answering()
        try:
            reply = self._score(request, message)
        except Exception as error:
            reply = _failure(request.ticket, error)
        self._send(reply)

    def _score(self, request: protocol.Score, message: bytes) -> protocol.Scored:
        shape = len(request.items), request.group, self._dim
        told, queries = protocol.get(self._scratch, request.start, request.length, math.prod(shape))
        echo, slots = protocol.checksum(message, told, queries), told.astype(np.int64)
        self._keys.check(request.items, slots)
        search = partial(score, self._keys, slots, request.pool)
        chosen = list(self._searches.map(search, request.items, queries.reshape(shape)))
        positions = [np.empty(0, np.int32), *(misbehaviour.told(pair[0]) for pair in chosen)]
        scores = [np.empty(0, np.float32), *(pair[1] for pair in chosen)]
        protocol.put(self._scratch, request.start, np.concatenate(positions), np.concatenate(scores))
        return protocol.Scored(request.ticket, [len(positions) for positions, _ in chosen], echo)


def _failure(ticket: int, error: Exception) -> protocol.Error:
    reason = str(error) if isinstance(error, ProtocolError) else f"{type(error).__name__}: {error}"
    return protocol.Error(ticket, reason[:_REASON])
