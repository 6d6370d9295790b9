"""A worker that says hello and then lies about every request, in the way its argument names."""

from __future__ import annotations

import os
import sys

import msgspec
import numpy as np
import zmq

from hetero_sglang.retrieval import protocol
from hetero_sglang.retrieval.protocol import Done, Error, Fetch, Hello, Pong, Scored, pack
from hetero_sglang.retrieval.spec import WorkerSpec


def lie(mode: str, frames: list[bytes], own: int) -> list[bytes]:
    """Frames of the reply."""
    request = protocol.read_request(frames)
    if isinstance(request, protocol.Ping):
        return pack(Pong(own, request.number + 1))
    ticket, echo = request.ticket, protocol.checksum(frames)
    rows = sum(item.rows for item in request.items) if isinstance(request, Fetch) else request.rows
    count = min(rows, request.items[0].topk) if isinstance(request, protocol.Score) else 0
    positions = np.arange(count, dtype=np.int32)
    scores = np.ones(count, np.float32)
    honest = Done(own, ticket, rows, echo) if isinstance(request, Fetch) else None
    scored = Scored(own, ticket, [count], echo)
    return {
        "unknown ticket": lambda: pack(Done(own, ticket + 1, rows, echo)),
        "unknown ticket's error": lambda: pack(Error(own, ticket + 1, "no")),
        "unreadable request": lambda: pack(Error(own, protocol.NO_TICKET, "no")),
        "other rows": lambda: pack(Done(own, ticket, rows - 1, echo)),
        "other echo": lambda: pack(Done(own, ticket, rows, echo ^ 1)),
        "earlier incarnation": lambda: pack(Done(own - 1, ticket, rows, echo)),
        "garbage": lambda: [os.urandom(40)],
        "empty": lambda: [b""],
        "a request": lambda: frames,
        "extra frame": lambda: [*pack(honest), b"more"],
        "scores for a fetch": lambda: pack(scored, positions, scores),
        "second hello": lambda: pack(Hello(own, os.getpid(), "")),
        "pong": lambda: pack(Pong(own, 0)),
        "done for a score": lambda: pack(Done(own, ticket, rows, echo)),
        "position out of range": lambda: pack(scored, positions + rows, scores),
        "negative position": lambda: pack(scored, positions - 1, scores),
        "position twice": lambda: pack(scored, positions * 0, scores),
        "too few": lambda: pack(Scored(own, ticket, [count - 1], echo), positions[1:], scores[1:]),
        "too few bytes": lambda: pack(scored, positions[1:], scores[1:]),
        "no number": lambda: pack(scored, positions, scores * np.nan),
        "too many items": lambda: pack(Scored(own, ticket, [count, 0], echo), positions, scores),
    }[mode]()


def main() -> None:
    mode = sys.argv[1]
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerSpec)
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(spec.address)
    hello = Hello(spec.incarnation, os.getpid(), spec.token)
    if mode == "wrong token":
        hello = msgspec.structs.replace(hello, token="0" * 32)
    elif mode == "wrong incarnation":
        hello = msgspec.structs.replace(hello, incarnation=spec.incarnation + 1)
    socket.send_multipart(pack(hello))
    while True:
        frames = socket.recv_multipart()
        if mode == "slow":  # gives signs of life, and nothing else
            request = protocol.read_request(frames)
            if isinstance(request, protocol.Ping):
                socket.send_multipart(pack(Pong(spec.incarnation, request.number)))
            continue
        socket.send_multipart(lie(mode, frames, spec.incarnation))


if __name__ == "__main__":
    main()
