"""What client and worker say to each other: a msgpack header, then each array as a raw frame of its own.

Headers are checked while they are decoded (types, signs), so neither side computes with what it cannot use.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec
import numpy as np

NO_TICKET = -1  # the request could not be read far enough to know its ticket

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class ProtocolError(Exception):
    """The other side sent something that is not a message, or not one that fits."""


class Gather(msgspec.Struct, frozen=True, array_like=True):
    """`rows` slots of one head; `head` counts the layer's compressed heads."""

    layer: Count
    head: Count
    rows: Count


class Query(msgspec.Struct, frozen=True, array_like=True):
    """Score one head with `group` queries; keep the best `topk` after pooling over `pool`."""

    layer: Count
    head: Count
    group: Count
    topk: Count
    pool: Count


class Fetch(msgspec.Struct, frozen=True, tag="fetch"):
    """Gather the items' rows to staging rows [start, start + sum of rows). Frames: slots int64."""

    ticket: Count
    start: Count
    items: list[Gather]


class Score(msgspec.Struct, frozen=True, tag="score"):
    """Score all items over the same `rows` slots. Frames: slots int32, queries float32 item after item."""

    ticket: Count
    rows: Count
    items: list[Query]


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    number: Count


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First words of a worker; only the process that was told `token` can say them."""

    incarnation: Count
    pid: Count
    token: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    """A fetch's rows lie in staging. `echo` is the request's checksum."""

    incarnation: Count
    ticket: Count
    rows: Count
    echo: Count


class Scored(msgspec.Struct, frozen=True, tag="scored"):
    """`counts` positions per item. Frames: positions int32, ascending, and scores float32, both item after item."""

    incarnation: Count
    ticket: Count
    counts: list[Count]
    echo: Count


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    incarnation: Count
    number: Count


class Error(msgspec.Struct, frozen=True, tag="error"):
    """The request could not be served; the worker has stopped touching its staging rows."""

    incarnation: Count
    ticket: Annotated[int, msgspec.Meta(ge=NO_TICKET, le=2**40)]
    reason: str


Request: TypeAlias = Fetch | Score | Ping
Reply: TypeAlias = Hello | Done | Scored | Pong | Error

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)


def pack(message: Request | Reply, *arrays: np.ndarray) -> list[bytes]:
    """Frames of a message."""
    return [_encoder.encode(message), *(array.tobytes() for array in arrays)]


def read_request(frames: Sequence[bytes]) -> Request:
    """The request in the first frame. ProtocolError when there is none."""
    return _read(_requests, frames)


def read_reply(frames: Sequence[bytes]) -> Reply:
    """The reply in the first frame. ProtocolError when there is none."""
    return _read(_replies, frames)


def arrays(frames: Sequence[bytes], *wanted: tuple[type[np.generic], int]) -> list[np.ndarray]:
    """Frames after the header as read-only arrays of (dtype, count). ProtocolError for other sizes."""
    sizes = [np.dtype(dtype).itemsize * count for dtype, count in wanted]
    found = [len(frame) for frame in frames[1:]]
    if found != sizes:
        raise ProtocolError(f"the frames have {found} bytes where the header promises {sizes}")
    return [np.frombuffer(frame, dtype) for frame, (dtype, _) in zip(frames[1:], wanted, strict=True)]


def checksum(frames: Sequence[bytes]) -> int:
    """CRC-32 over all frames of a request."""
    code = 0
    for frame in frames:
        code = zlib.crc32(frame, code)
    return code


def _read(decoder: msgspec.msgpack.Decoder, frames: Sequence[bytes]) -> Request | Reply:
    try:
        return decoder.decode(frames[0])
    except (msgspec.MsgspecError, IndexError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a message: {error}") from error
