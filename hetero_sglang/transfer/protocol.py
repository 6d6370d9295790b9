"""What client and worker say to each other: small msgpack messages about arrays that lie in shared memory.

Messages are checked while they are decoded (types, signs), so neither side computes with what it cannot use. Arrays are
copied out before they are looked at, so what was checked cannot change any more. A worker's channel is its own, so
nothing says which worker it is from."""

import mmap
import zlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np

from hetero_sglang.cache.host_layout import HostLayout

MOST_PENDING = 4096  # requests that may be under way
NO_TICKET = -1  # the request could not be read far enough to know its ticket

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class ProtocolError(Exception):
    """The other side sent something that is not a message, or not one that fits."""


class WorkerSpec(msgspec.Struct, frozen=True):
    """The first message to a worker, in JSON: what it maps."""

    threads: int
    host_fd: int
    scratch_fd: int
    scratch_bytes: int
    layout: HostLayout


class Query(msgspec.Struct, frozen=True, array_like=True):
    """Keep the best `topk` rows of one head; `head` counts the layer's compressed heads."""

    layer: Count
    head: Count
    topk: Count


class Score(msgspec.Struct, frozen=True, tag="score"):
    """Score all items over the same `length` slots, each with `group` queries, pooled over `pool` neighbours. At byte
    `start` of the scratch memory: slots int32, then queries float32 item after item; the answer takes their place."""

    ticket: Count
    start: Count
    length: Count
    group: Count
    pool: Count
    items: list[Query]


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    number: Count


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First words of a worker: it is ready."""


class Scored(msgspec.Struct, frozen=True, tag="scored"):
    """`counts` positions per item. At the request's `start`: positions int32, ascending, then scores float32, both item
    after item. `echo` is the request's checksum."""

    ticket: Count
    counts: list[Count]
    echo: Count


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    number: Count


class Error(msgspec.Struct, frozen=True, tag="error"):
    """The request could not be served; the worker has not touched its memory."""

    ticket: Annotated[int, msgspec.Meta(ge=NO_TICKET, le=2**40)]
    reason: str


Request: TypeAlias = Score | Ping
Reply: TypeAlias = Hello | Scored | Pong | Error

pack = msgspec.msgpack.Encoder().encode


def _reader(kind: Any) -> Callable[[bytes], Any]:
    decoder = msgspec.msgpack.Decoder(kind)

    def read(data: bytes) -> Any:
        """ProtocolError when it is no message of this kind."""
        try:
            return decoder.decode(data)
        # A list may claim billions of items, for which there is no memory.
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, MemoryError) as error:
            raise ProtocolError(f"not a message: {error}") from error

    return read


read_request: Callable[[bytes], Request] = _reader(Request)
read_reply: Callable[[bytes], Reply] = _reader(Reply)


def put(memory: mmap.mmap, at: int, numbers: np.ndarray, values: np.ndarray) -> None:
    """Write int32 [n], then float32 [m], from byte `at` on. ProtocolError when they do not fit."""
    words = _words(memory, at, numbers.size + values.size)
    words[: numbers.size] = numbers
    words[numbers.size :] = values.view(np.int32)


def get(memory: mmap.mmap, at: int, numbers: int, values: int) -> tuple[np.ndarray, np.ndarray]:
    """Copies of int32 [numbers] and float32 [values] from byte `at` on. ProtocolError when the memory ends before."""
    words = _words(memory, at, numbers + values).copy()
    return words[:numbers], words[numbers:].view(np.float32)


def get_scored(
    memory: mmap.mmap, at: int, length: int, counts: Sequence[int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Positions and scores of each item from byte `at` on, `counts` of them; ProtocolError when they cannot be true of
    `length` slots."""
    found, ends = get(memory, at, sum(counts), sum(counts)), np.cumsum(counts, dtype=np.int64)
    if not np.isfinite(found[1]).all():
        raise ProtocolError("its scores are not finite")
    positions, scores = (np.split(array, ends)[:-1] for array in found)  # what follows the last end is empty
    for part in positions:
        if part.size and (part[0] < 0 or part[-1] >= length or (part[1:] <= part[:-1]).any()):
            raise ProtocolError("its positions are out of range or not ascending")
    return positions, scores


def checksum(message: bytes, *arrays: np.ndarray) -> int:
    """CRC-32 over a request and its arrays."""
    code = zlib.crc32(message)
    for array in arrays:
        code = zlib.crc32(array.data, code)
    return code


def _words(memory: mmap.mmap, at: int, count: int) -> np.ndarray:
    if (end := at + 4 * count) > len(memory):
        raise ProtocolError(f"the memory has {len(memory)} bytes, not {end}")
    return np.frombuffer(memory, np.int32, count, at)
