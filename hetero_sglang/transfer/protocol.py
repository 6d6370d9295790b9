"""What client and worker say to each other: small msgpack messages about arrays that lie in shared memory.

Messages are checked while they are decoded (types, signs), so neither side computes with what it cannot use. Arrays are
copied out before they are looked at, so what was checked cannot change any more.
"""

from __future__ import annotations

import mmap
import zlib
from typing import Annotated, TypeAlias, TypeVar

import msgspec
import numpy as np

MOST_PENDING = 4096  # requests that may be under way
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
    """Gather the items' rows to staging rows [start, start + sum of rows), where their slots (int32) lie first."""

    ticket: Count
    start: Count
    items: list[Gather]


class Score(msgspec.Struct, frozen=True, tag="score"):
    """Score all items over the same `rows` slots. At byte `start` of the score memory: slots int32, then queries
    float32 item after item; the answer takes their place."""

    ticket: Count
    start: Count
    rows: Count
    items: list[Query]


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    number: Count


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First words of a worker: it is ready."""

    incarnation: Count


class Done(msgspec.Struct, frozen=True, tag="done"):
    """A fetch's rows lie in staging. `echo` is the request's checksum."""

    incarnation: Count
    ticket: Count
    rows: Count
    echo: Count


class Scored(msgspec.Struct, frozen=True, tag="scored"):
    """`counts` positions per item. At the request's `start`: positions int32, ascending, then scores float32, both item
    after item."""

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


Message = TypeVar("Message")
Request: TypeAlias = Fetch | Score | Ping
Reply: TypeAlias = Hello | Done | Scored | Pong | Error

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def pack(message: Request | Reply) -> bytes:
    return _encoder.encode(message)


def read_request(data: bytes) -> Request:
    """ProtocolError when it is none."""
    return _read(_requests, data)


def read_reply(data: bytes) -> Reply:
    """ProtocolError when it is none."""
    return _read(_replies, data)


def put(memory: mmap.mmap, at: int, *arrays: np.ndarray) -> None:
    """Write flat arrays one after the other from byte `at` on. ProtocolError when they do not fit."""
    for array, place in zip(arrays, _places(memory, at, [(a.dtype, a.size) for a in arrays]), strict=True):
        place[:] = array


def get(memory: mmap.mmap, at: int, *wanted: tuple[type[np.generic], int]) -> list[np.ndarray]:
    """Copies of arrays of (dtype, count) from byte `at` on. ProtocolError when the memory ends before them."""
    return [place.copy() for place in _places(memory, at, [(np.dtype(dtype), count) for dtype, count in wanted])]


def checksum(message: bytes, *arrays: np.ndarray) -> int:
    """CRC-32 over a request and its arrays."""
    code = zlib.crc32(message)
    for array in arrays:
        code = zlib.crc32(array.data, code)
    return code


def _places(memory: mmap.mmap, at: int, wanted: list[tuple[np.dtype, int]]) -> list[np.ndarray]:
    end = at + sum(dtype.itemsize * count for dtype, count in wanted)
    if end > len(memory):
        raise ProtocolError(f"the memory has {len(memory)} bytes, not {end}")
    places = []
    for dtype, count in wanted:
        places.append(np.frombuffer(memory, dtype, count, at) if count else np.empty(0, dtype))
        at += dtype.itemsize * count
    return places


def _read(decoder: msgspec.msgpack.Decoder[Message], data: bytes) -> Message:
    try:
        return decoder.decode(data)
    # A list may claim billions of items, for which there is no memory.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, MemoryError) as error:
        raise ProtocolError(f"not a message: {error}") from error
