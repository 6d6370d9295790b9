"""No message kills the worker or makes it touch what it should not."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from retrieval_helpers import held

from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer import process, protocol
from hetero_sglang.transfer.channel import MOST_BYTES
from hetero_sglang.transfer.ring import Ring, Segment
from hetero_sglang.transfer.spec import HostLayout, WorkerSpec
from hetero_sglang.transfer.staging import StagingRing

ROWS, STAGING, SCORES = 50, 64, 4096


class Bench:
    """A real worker with nothing between it and the test."""

    def __init__(self) -> None:
        self.store = HostStore(ROWS, [2, 0, 1], 4, 8, torch.bfloat16)
        for view in self.store.blocks:
            view.copy_(torch.randn(view.shape))
        self.before = bytes(self.store.memory.buffer)
        self.ring = StagingRing(STAGING, 4, 8, torch.bfloat16)
        self.scores = Ring("hetero-scores", SCORES, 1)
        spec = WorkerSpec(
            incarnation=3,
            threads=2,
            host_fd=self.store.memory.fd,
            staging_fd=self.ring.memory.fd,
            staging_rows=STAGING,
            score_fd=self.scores.memory.fd,
            score_bytes=SCORES,
            layout=msgspec.convert(self.store.layout(), HostLayout),
        )
        self.worker = process.WorkerProcess(spec, process.COMMAND)
        self.answer(None)

    def answer(self, message: bytes | None) -> protocol.Reply | None:
        """The reply to a message, of any size; without one, wait for the hello."""
        if message is not None:
            self.worker._socket.send(message)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            for reply in self.worker.receive():
                return protocol.read_reply(reply)
            if message is None and self.worker.up:
                return None
            time.sleep(0.0005)
        raise AssertionError(f"no answer to {message!r}")

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
            answers += sum(1 for reply in self.worker.receive() if protocol.read_reply(reply).incarnation == 3)
        return answers

    def put_slots(self, *slots: int, row: int = 0) -> None:
        protocol.put(self.ring.memory.buffer, row * self.ring.row_bytes, np.array(slots, np.int32))

    def put_score(self, slots: np.ndarray, queries: np.ndarray) -> None:
        protocol.put(self.scores.memory.buffer, 0, slots.astype(np.int32), queries.astype(np.float32).ravel())

    def valid_fetch(self) -> bytes:
        self.put_slots(1, 2, 3, 49, 0, row=5)
        return protocol.pack(protocol.Fetch(7, 5, [protocol.Gather(0, 1, 3), protocol.Gather(2, 0, 2)]))

    def valid_score(self) -> bytes:
        self.put_score(np.array([1, 2, 3, 49, 0]), np.ones((3, 4)))
        items = [protocol.Query(0, 1, 2, 2, 1), protocol.Query(2, 0, 1, 8, 3)]
        return protocol.pack(protocol.Score(8, 0, 5, items))

    def still_works(self) -> bool:
        done = self.answer(self.valid_fetch())
        k, v = self.ring.views(Segment(5, 5))
        wanted = torch.cat([held(self.store, 0)[[1, 2, 3], 1], held(self.store, 2)[[49, 0], 0]])
        right = torch.equal(torch.cat((k, v), 1), wanted)
        return isinstance(done, protocol.Done) and done.rows == 5 and right and not self.worker.gone()

    def close(self) -> None:
        self.worker.kill()
        self.worker.wait(5)
        self.worker.close()


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    assert bytes(bench.store.memory.buffer) == bench.before
    bench.close()


def fetch(start: int, *items: protocol.Gather) -> bytes:
    return protocol.pack(protocol.Fetch(1, start, list(items)))


def score(start: int, rows: int, *items: protocol.Query) -> bytes:
    return protocol.pack(protocol.Score(1, start, rows, list(items)))


WRONG = {
    "empty": b"",
    "deep": b"\x91" * 60_000,
    "a list of billions": protocol.pack(protocol.Fetch(1, 0, []))[:-1] + b"\xdd\xff\xff\xff\xff",
    "oversize": b"\x00" * (MOST_BYTES + 1),
    "far oversize": b"\x00" * (2 * MOST_BYTES),
    "a reply": protocol.pack(protocol.Pong(3, 1)),
    "truncated": fetch(0, protocol.Gather(0, 0, 1))[:-1],
    "bytes more": fetch(0, protocol.Gather(0, 0, 1)) + b"\x00",
    "negative ticket": msgspec.msgpack.encode({"type": "fetch", "ticket": -5, "start": 0, "items": []}),
    "wrong type": msgspec.msgpack.encode({"type": "fetch", "ticket": "1", "start": 0, "items": []}),
    "promised memory": fetch(0, protocol.Gather(0, 0, 2**40)),
    "beyond staging": fetch(STAGING - 1, protocol.Gather(0, 0, 2)),
    "far beyond": fetch(2**40, protocol.Gather(0, 0, 2)),
    "head": fetch(0, protocol.Gather(2, 1, 1)),
    "layer": fetch(0, protocol.Gather(3, 0, 1)),
    "even pool": score(0, 1, protocol.Query(0, 0, 1, 1, 2)),
    "slots beyond the memory": score(0, SCORES, protocol.Query(0, 0, 1, 1, 1)),
    "queries beyond the memory": score(0, 1, protocol.Query(0, 0, SCORES, 1, 1)),
    "answer beyond the memory": score(0, SCORES // 8, *[protocol.Query(0, 0, 1, SCORES, 1)] * 3),
    "score far beyond": score(2**40, 1, protocol.Query(0, 0, 1, 1, 1)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_answered_with_an_error(name: str, bench: Bench) -> None:
    bench.put_slots(*[0] * 8)
    bench.put_score(np.zeros(SCORES // 4), np.zeros(0))
    answer = bench.answer(WRONG[name])
    assert isinstance(answer, protocol.Error) and answer.reason and answer.incarnation == 3
    assert bench.still_works()


@pytest.mark.parametrize("slot", [ROWS, -1, 2**31 - 1, -(2**31)])
def test_a_slot_that_does_not_exist_is_refused(slot: int, bench: Bench) -> None:
    bench.put_slots(0, slot)
    assert isinstance(bench.answer(fetch(0, protocol.Gather(0, 0, 2))), protocol.Error)
    bench.put_score(np.array([0, slot]), np.ones(4))
    assert isinstance(bench.answer(score(0, 2, protocol.Query(0, 0, 1, 1, 1))), protocol.Error)
    assert bench.still_works()


def test_valid_requests_are_served(bench: Bench) -> None:
    assert bench.still_works()
    message = bench.valid_score()
    wanted = (np.int32, 5), (np.float32, 12)
    echo = protocol.checksum(message, *protocol.get(bench.scores.memory.buffer, 0, *wanted))
    scored = bench.answer(message)
    assert isinstance(scored, protocol.Scored) and scored.counts == [2, 5] and scored.echo == echo
    assert bench.answer(protocol.pack(protocol.Ping(9))) == protocol.Pong(3, 9)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200))
def test_random_messages_get_an_answer(bench: Bench, message: bytes) -> None:
    assert bench.answer(message) is not None


def hostile(rng: random.Random, good: list[bytes]) -> bytes:
    """Truncated, oversize, damaged, of wrong types, about rows that do not exist; some may be right by chance."""

    def number() -> int:
        return rng.choice([0, 1, 2, 3, rng.randrange(100), STAGING, SCORES, 2**31, 2**40, 2**63])

    kind = rng.randrange(7)
    message = bytearray(rng.choice(good))
    if kind == 0:
        return bytes(message[: rng.randrange(len(message))])
    if kind == 1:
        return rng.randbytes(rng.randrange(80))
    if kind == 2 and rng.random() < 0.05:
        return rng.randbytes(1) * (MOST_BYTES + rng.randrange(1, 5))
    if kind == 3:
        items = [[number() for _ in range(rng.choice([3, 5]))] for _ in range(rng.randrange(4))]
        wrong = {"ticket": number(), "start": number(), "items": items, "rows": number()}
        wrong[rng.choice(list(wrong))] = rng.choice([None, -1, 1.5, "x", [[]], {}, b"", True])
        return msgspec.msgpack.encode({"type": rng.choice(["fetch", "score", "ping", "hello", 5]), **wrong})
    if kind == 4:
        return fetch(number() % 2**40, *(protocol.Gather(*(number() % 2**40 for _ in range(3))) for _ in range(2)))
    if kind == 5:
        return score(number() % 2**40, number() % 2**40, protocol.Query(*(number() % 2**40 for _ in range(5))))
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
    good = [bench.valid_fetch(), bench.valid_score(), protocol.pack(protocol.Ping(4))]
    pid = bench.worker.pid
    for _ in range(10):
        protocol.put(bench.ring.memory.buffer, 0, np.frombuffer(rng.randbytes(STAGING * 8), np.int32))
        protocol.put(bench.scores.memory.buffer, 0, np.frombuffer(rng.randbytes(SCORES), np.int32))
        assert bench.flood(hostile(rng, good) for _ in range(10_000)) == 10_000
        assert bench.still_works() and bench.worker.pid == pid
    assert bytes(bench.store.memory.buffer) == bench.before
