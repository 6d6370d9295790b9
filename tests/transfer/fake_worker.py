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
from hetero_sglang.transfer.protocol import Error, Hello, Pong, Scored, WorkerSpec, pack


class Liar:
    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.scratch = mmap.mmap(spec.scratch_fd, spec.scratch_bytes)

    def echo(self, request: protocol.Score, message: bytes) -> int:
        floats = len(request.items) * request.group * self.spec.layout.head_dim
        return protocol.checksum(message, *protocol.get(self.scratch, request.start, request.length, floats))

    def lie(self, mode: str, message: bytes) -> bytes:
        """The reply."""
        request = protocol.read_request(message)
        if isinstance(request, protocol.Ping):
            return pack(Pong(request.number + 1))
        ticket, echo, length = request.ticket, self.echo(request, message), request.length
        count = min(length, request.items[0].topk)
        positions = np.arange(count, dtype=np.int32)
        scores = np.ones(count, np.float32)
        good = Scored(ticket, [count], echo)

        def scored(positions: np.ndarray, scores: np.ndarray, *counts: int) -> bytes:
            protocol.put(self.scratch, request.start, positions, scores)
            return pack(Scored(ticket, list(counts), echo))

        def but(**wrong: int) -> bytes:
            protocol.put(self.scratch, request.start, positions, scores)
            return pack(msgspec.structs.replace(good, **wrong))

        return {
            "unknown ticket": lambda: but(ticket=ticket + 1),
            "unknown ticket's error": lambda: pack(Error(ticket + 1, "no")),
            "unreadable request": lambda: pack(Error(protocol.NO_TICKET, "no")),
            "other echo": lambda: but(echo=echo ^ 1),
            "garbage": lambda: os.urandom(40),
            "empty": lambda: b"",
            "a request": lambda: message,
            "truncated": lambda: but()[:-1],
            "trailing bytes": lambda: but() + b"more",
            "oversize": lambda: pack(Error(ticket, "no" * MOST_BYTES)),
            "second hello": lambda: pack(Hello()),
            "pong": lambda: pack(Pong(0)),
            "position out of range": lambda: scored(positions + length, scores, count),
            "last position out of range": lambda: scored(positions + length - count + 1, scores, count),
            "negative position": lambda: scored(positions - 1, scores, count),
            "position twice": lambda: scored(positions * 0, scores, count),
            "descending positions": lambda: scored(positions[::-1], scores, count),
            "too few": lambda: scored(positions[1:], scores[1:], count - 1),
            "too many": lambda: scored(np.arange(count + 1, dtype=np.int32), np.ones(count + 1, np.float32), count + 1),
            "no number": lambda: scored(positions, scores * np.nan, count),
            "no finite number": lambda: scored(positions, scores * np.inf, count),
            "too many items": lambda: scored(positions, scores, count, 0),
            "no items": lambda: scored(positions, scores),
        }[mode]()


def main() -> None:
    mode = sys.argv[1]
    end = socket.socket(fileno=0)
    spec = msgspec.json.decode(end.recv(MOST_BYTES), type=WorkerSpec)
    liar = Liar(spec)
    end.send(pack(Error(protocol.NO_TICKET, "good morning") if mode == "no hello" else Hello()))
    while message := end.recv(MOST_BYTES):
        if mode == "slow":  # gives signs of life, and nothing else
            request = protocol.read_request(message)
            if isinstance(request, protocol.Ping):
                end.send(pack(Pong(request.number)))
            continue
        end.send(liar.lie(mode, message))


if __name__ == "__main__":
    main()
