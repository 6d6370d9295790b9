"""No message kills the worker or makes it touch what it should not."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import islice

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transfer_helpers import held
from waiting import PATIENCE_S, wait_for

from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer import process, protocol
from hetero_sglang.transfer.channel import MOST_BYTES
from hetero_sglang.transfer.scratch import Scratch

ROWS, SCRATCH = 50, 4096


class Bench:
    """A real worker with nothing between it and the test."""

    def __init__(self) -> None:
        self.store = HostStore(ROWS, [2, 0, 1], 4, 8, torch.bfloat16)
        random = torch.Generator().manual_seed(0)  # no two scores are close enough to be swapped by rounding
        for view in self.store.blocks:
            view.copy_(torch.randn(view.shape, generator=random))
        self.before = bytes(self.store.memory.buffer)
        self.scratch = Scratch(SCRATCH)
        self.memory = self.scratch.memory.buffer
        spec = protocol.WorkerSpec(2, self.store.memory.fd, self.scratch.memory.fd, SCRATCH, self.store.layout())
        self.worker = process.WorkerProcess(spec, process.COMMAND)
        assert self.answer(None) == protocol.Hello()

    def replies(self) -> Iterator[protocol.Reply]:
        """What has come, unjudged."""
        while True:
            try:
                yield protocol.read_reply(self.worker._socket.recv(MOST_BYTES + 1))
            except BlockingIOError:
                return

    def answer(self, message: bytes | None) -> protocol.Reply:
        """The reply to a message, of any size; without one, wait for the hello."""
        if message is not None:
            self.worker._socket.send(message)
        (reply,) = wait_for(lambda: list(islice(self.replies(), 1)), f"there is no answer to {message!r}", 0.0005)
        return reply

    def flood(self, messages: Iterator[bytes]) -> int:
        """Answers to all messages, sent as fast as they are taken."""
        sent, answers, end = 0, 0, time.monotonic() + 300
        waiting = next(messages, None)
        while (waiting is not None or answers < sent) and time.monotonic() < end:
            try:
                while waiting is not None:
                    self.worker._socket.send(waiting)
                    sent, waiting = sent + 1, next(messages, None)
            except BlockingIOError:
                pass
            answers += sum(1 for _ in self.replies())
        return answers

    def put(self, slots: np.ndarray, queries: np.ndarray, at: int = 0) -> None:
        protocol.put(self.memory, at, slots.astype(np.int32), queries.astype(np.float32).ravel())

    def valid(self) -> bytes:
        """A request for the best 2 of head 1 of layer 0 and the best 8 of head 0 of layer 2, among 5 slots."""
        self.put(np.array([1, 2, 3, 49, 0]), np.ones((4, 4)), at=16)
        items = [protocol.Query(0, 1, 2), protocol.Query(2, 0, 8)]
        return protocol.pack(protocol.Score(8, 16, 5, 2, 1, items))

    def check_works(self) -> None:
        """AssertionError unless it answers a valid request rightly."""
        message = self.valid()
        echo = protocol.checksum(message, *protocol.get(self.memory, 16, 5, 16))
        assert self.answer(message) == protocol.Scored(8, [2, 5], echo) and not self.worker.gone()
        positions, scores = protocol.get_scored(self.memory, 16, 5, [2, 5])
        slots = torch.tensor([1, 2, 3, 49, 0])
        for (layer, head, count), at, found in zip(((0, 1, 2), (2, 0, 5)), positions, scores, strict=True):
            wanted = torch.softmax(held(self.store, layer)[slots, head, :4].double().sum(1), 0)
            assert at.tolist() == sorted(wanted.topk(count).indices.tolist())
            torch.testing.assert_close(torch.from_numpy(found).double(), wanted[at], rtol=1e-4, atol=1e-9)

    def close(self) -> None:
        self.worker.kill()
        self.worker.wait(PATIENCE_S)
        self.worker.close()


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    assert bytes(bench.store.memory.buffer) == bench.before
    bench.close()


def score(start: int, rows: int, *items: protocol.Query, group: int = 1, pool: int = 1) -> bytes:
    return protocol.pack(protocol.Score(1, start, rows, group, pool, list(items)))


def raw(**wrong: object) -> bytes:
    """An empty request with these fields in place of right ones."""
    right = {"type": "score", "ticket": 5, "start": 0, "length": 1, "group": 1, "pool": 1, "items": []}
    return msgspec.msgpack.encode({**right, **wrong})


ONE = protocol.Query(0, 0, 1)
WRONG = {
    "empty": b"",
    "deep": b"\x91" * 60_000,
    "a list of billions": score(0, 0)[:-1] + b"\xdd\xff\xff\xff\xff",
    "oversize": b"\x00" * (MOST_BYTES + 1),
    "far oversize": b"\x00" * (2 * MOST_BYTES),
    "a reply": protocol.pack(protocol.Pong(1)),
    "truncated": score(0, 1, ONE)[:-1],
    "bytes more": score(0, 1, ONE) + b"\x00",
    "negative ticket": raw(ticket=-5),
    "negative start": raw(start=-4),
    "wrong type": raw(ticket="1"),
    "a fetch": msgspec.msgpack.encode({"type": "fetch", "ticket": 1, "start": 0, "items": [[0, 0, 1]]}),
    "promised memory": score(0, 2**40, ONE),
    "head": score(0, 1, protocol.Query(2, 1, 1)),
    "layer": score(0, 1, protocol.Query(3, 0, 1)),
    "layer without heads": score(0, 1, protocol.Query(1, 0, 1)),
    "even pool": score(0, 1, ONE, pool=2),
    "slots beyond the memory": score(0, SCRATCH, ONE),
    "slots at its end": score(SCRATCH - 4, 2, ONE),
    "queries beyond the memory": score(0, 1, ONE, group=SCRATCH),
    "answer beyond the memory": score(0, SCRATCH // 8, *[protocol.Query(0, 0, SCRATCH)] * 3),
    "far beyond": score(2**40, 1, ONE),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_answered_with_an_error(name: str, bench: Bench) -> None:
    bench.put(np.zeros(SCRATCH // 4), np.zeros(0))
    answer = bench.answer(WRONG[name])
    assert isinstance(answer, protocol.Error)
    assert answer.reason and "Error: " not in answer.reason, "it was noticed too late"
    assert not any(bench.memory[:SCRATCH]), "it was written to"
    bench.check_works()


@pytest.mark.parametrize("slot", [ROWS, -1, 2**31 - 1, -(2**31)])
def test_a_slot_that_does_not_exist_is_refused(slot: int, bench: Bench) -> None:
    bench.put(np.array([0, slot]), np.ones(4))
    assert isinstance(bench.answer(score(0, 2, ONE)), protocol.Error)
    bench.check_works()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_no_number_is_refused(value: float, bench: Bench) -> None:
    bench.put(np.array([0, 1]), np.full(4, value))
    assert isinstance(bench.answer(score(0, 2, ONE)), protocol.Error)
    bench.check_works()


def test_valid_requests_are_served(bench: Bench) -> None:
    bench.check_works()
    assert bench.answer(protocol.pack(protocol.Ping(9))) == protocol.Pong(9)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200))
def test_random_messages_get_an_answer(bench: Bench, message: bytes) -> None:
    assert bench.answer(message) is not None


def hostile(rng: random.Random, good: list[bytes]) -> bytes:
    """Truncated, oversize, damaged, of wrong types, about rows that do not exist; some may be right by chance."""

    def number() -> int:
        return rng.choice([0, 1, 2, 3, rng.randrange(100), SCRATCH, 2**31, 2**40, 2**63])

    kind = rng.randrange(7)
    message = bytearray(rng.choice(good))
    if kind == 0:
        return bytes(message[: rng.randrange(len(message))])
    if kind == 1:
        return rng.randbytes(rng.randrange(80))
    if kind == 2 and rng.random() < 0.05:
        return rng.randbytes(1) * (MOST_BYTES + rng.randrange(1, 5))
    if kind == 3:
        items = [[number() for _ in range(rng.choice([2, 3]))] for _ in range(rng.randrange(4))]
        wrong = {"ticket": number(), "start": number(), "items": items, "length": number(), "group": 1, "pool": 1}
        wrong[rng.choice(list(wrong))] = rng.choice([None, -1, 1.5, "x", [[]], {}, b"", True])
        return msgspec.msgpack.encode({"type": rng.choice(["fetch", "score", "ping", "hello", 5]), **wrong})
    if kind in (4, 5):
        items = [protocol.Query(*(number() % 2**40 for _ in range(3))) for _ in range(rng.randrange(1, 4))]
        return score(*(number() % 2**40 for _ in range(2)), *items, group=number() % 2**40, pool=number() % 2**40)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(message))
        if rng.random() < 0.6:
            message[at] = rng.randrange(256)
        elif rng.random() < 0.5:
            message.insert(at, rng.randrange(256))
        elif len(message) > 1:
            del message[at]
    return bytes(message)


def test_100_000_hostile_messages_all_get_an_answer_and_damage_nothing(bench: Bench, rng: random.Random) -> None:
    good = [bench.valid(), protocol.pack(protocol.Ping(4))]
    pid = bench.worker.pid
    for _ in range(10):
        protocol.put(bench.memory, 0, np.frombuffer(rng.randbytes(SCRATCH), np.int32), np.empty(0, np.float32))
        assert bench.flood(hostile(rng, good) for _ in range(10_000)) == 10_000
        bench.check_works()
        assert bench.worker.pid == pid
    assert bytes(bench.store.memory.buffer) == bench.before
