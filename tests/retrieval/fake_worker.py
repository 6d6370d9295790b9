"""A worker that says hello and then lies about every request, in the way its argument names."""

from __future__ import annotations

import mmap
import os
import socket
import sys

import msgspec
import numpy as np

from hetero_sglang.transfer import protocol
from hetero_sglang.transfer.channel import MOST_BYTES
from hetero_sglang.transfer.protocol import Done, Error, Fetch, Hello, Pong, Scored, pack
from hetero_sglang.transfer.spec import WorkerSpec


class Liar:
    def __init__(self, spec: WorkerSpec) -> None:
        self.spec, self.own = spec, spec.incarnation
        self.staging = mmap.mmap(spec.staging_fd, max(1, spec.staging_rows * spec.layout.row_bytes))
        self.scores = mmap.mmap(spec.score_fd, spec.score_bytes)

    def echo(self, request: protocol.Fetch | protocol.Score, message: bytes) -> int:
        if isinstance(request, Fetch):
            rows, at = sum(item.rows for item in request.items), request.start * self.spec.layout.row_bytes
            return protocol.checksum(message, *protocol.get(self.staging, at, (np.int32, rows)))
        floats = sum(item.group for item in request.items) * self.spec.layout.head_dim
        wanted = (np.int32, request.rows), (np.float32, floats)
        return protocol.checksum(message, *protocol.get(self.scores, request.start, *wanted))

    def lie(self, mode: str, message: bytes) -> bytes:
        """The reply."""
        request, own = protocol.read_request(message), self.own
        if isinstance(request, protocol.Ping):
            return pack(Pong(own, request.number + 1))
        ticket, echo = request.ticket, self.echo(request, message)
        rows = sum(item.rows for item in request.items) if isinstance(request, Fetch) else request.rows
        count = min(rows, request.items[0].topk) if isinstance(request, protocol.Score) else 0
        positions = np.arange(count, dtype=np.int32)
        scores = np.ones(count, np.float32)

        def scored(positions: np.ndarray, scores: np.ndarray, *counts: int) -> bytes:
            protocol.put(self.scores, request.start, positions, scores)
            return pack(Scored(own, ticket, list(counts), echo))

        return {
            "unknown ticket": lambda: pack(Done(own, ticket + 1, rows, echo)),
            "unknown ticket's error": lambda: pack(Error(own, ticket + 1, "no")),
            "unreadable request": lambda: pack(Error(own, protocol.NO_TICKET, "no")),
            "other rows": lambda: pack(Done(own, ticket, rows - 1, echo)),
            "other echo": lambda: pack(Done(own, ticket, rows, echo ^ 1)),
            "earlier incarnation": lambda: pack(Done(own - 1, ticket, rows, echo)),
            "garbage": lambda: os.urandom(40),
            "empty": lambda: b"",
            "a request": lambda: message,
            "truncated": lambda: pack(Done(own, ticket, rows, echo))[:-1],
            "trailing bytes": lambda: pack(Done(own, ticket, rows, echo)) + b"more",
            "oversize": lambda: pack(Error(own, ticket, "no" * MOST_BYTES)),
            "scores for a fetch": lambda: pack(Scored(own, ticket, [0], echo)),
            "second hello": lambda: pack(Hello(own)),
            "pong": lambda: pack(Pong(own, 0)),
            "done for a score": lambda: pack(Done(own, ticket, rows, echo)),
            "position out of range": lambda: scored(positions + rows, scores, count),
            "negative position": lambda: scored(positions - 1, scores, count),
            "position twice": lambda: scored(positions * 0, scores, count),
            "too few": lambda: scored(positions[1:], scores[1:], count - 1),
            "no number": lambda: scored(positions, scores * np.nan, count),
            "too many items": lambda: scored(positions, scores, count, 0),
        }[mode]()


def main() -> None:
    mode = sys.argv[1]
    end = socket.socket(fileno=0)
    spec = msgspec.json.decode(end.recv(MOST_BYTES), type=WorkerSpec)
    liar = Liar(spec)
    end.send(pack(Hello(spec.incarnation + (mode == "wrong incarnation"))))
    while message := end.recv(MOST_BYTES):
        if mode == "slow":  # gives signs of life, and nothing else
            request = protocol.read_request(message)
            if isinstance(request, protocol.Ping):
                end.send(pack(Pong(spec.incarnation, request.number)))
            continue
        end.send(liar.lie(mode, message))


if __name__ == "__main__":
    main()
