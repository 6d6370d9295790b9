"""No message kills the worker or makes it touch what it should not."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hetero_sglang.memory.host_store import HostStore
from hetero_sglang.retrieval import process, protocol
from hetero_sglang.retrieval.spec import HostLayout, WorkerSpec
from hetero_sglang.retrieval.staging import StagingRing

ROWS, STAGING = 50, 64


class Bench:
    """A real worker with nothing between it and the test."""

    def __init__(self) -> None:
        self.store = HostStore(ROWS, [2, 0, 1], 4, 8, torch.bfloat16)
        for view in (*self.store.k, *self.store.v):
            view.copy_(torch.randn(view.shape))
        self.before = bytes(self.store.memory.buffer)
        self.ring = StagingRing(STAGING, 4, 8, torch.bfloat16)
        spec = WorkerSpec(
            address=process.new_address(),
            token="t",
            incarnation=3,
            parent=os.getpid(),
            threads=2,
            host_fd=self.store.memory.fd,
            staging_fd=self.ring.memory.fd,
            staging_rows=STAGING,
            layout=msgspec.convert(self.store.layout(), HostLayout),
        )
        self.worker = process.WorkerProcess(spec, process.COMMAND)
        self.answer(None)

    def answer(self, frames: Sequence[bytes] | None) -> protocol.Reply | None:
        """The reply to `frames`; without frames, wait for the hello."""
        if frames is not None:
            assert self.worker.send(frames)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            for reply in self.worker.receive():
                return protocol.read_reply(reply)
            if frames is None and self.worker.up:
                return None
            time.sleep(0.0005)
        raise AssertionError(f"no answer to {frames}")

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


def valid_fetch() -> list[bytes]:
    items = [protocol.Gather(0, 1, 3), protocol.Gather(2, 0, 2)]
    return protocol.pack(protocol.Fetch(7, 5, items), np.array([1, 2, 3, 49, 0]))


def valid_score() -> list[bytes]:
    items = [protocol.Query(0, 1, 2, 2, 1), protocol.Query(2, 0, 1, 8, 3)]
    slots = np.array([1, 2, 3, 49, 0], np.int32)
    return protocol.pack(protocol.Score(8, 5, items), slots, np.ones((3, 4), np.float32))


def still_works(bench: Bench) -> bool:
    done = bench.answer(valid_fetch())
    return isinstance(done, protocol.Done) and done.rows == 5 and not bench.worker.gone()


WRONG = {
    "empty": [b""],
    "deep": [b"\x91" * 100_000],
    "a reply": protocol.pack(protocol.Pong(3, 1)),
    "no frames": valid_fetch()[:1],
    "one frame more": [*valid_fetch(), b""],
    "half a slot": [valid_fetch()[0], valid_fetch()[1][:-3]],
    "negative ticket": [msgspec.msgpack.encode({"type": "fetch", "ticket": -5, "start": 0, "items": []})],
    "promised memory": protocol.pack(protocol.Fetch(1, 0, [protocol.Gather(0, 0, 2**40)]), np.arange(2)),
    "beyond staging": protocol.pack(protocol.Fetch(1, STAGING - 1, [protocol.Gather(0, 0, 2)]), np.arange(2)),
    "far beyond": protocol.pack(protocol.Fetch(1, 2**40, [protocol.Gather(0, 0, 2)]), np.arange(2)),
    "slot": protocol.pack(protocol.Fetch(1, 0, [protocol.Gather(0, 0, 1)]), np.array([ROWS])),
    "negative slot": protocol.pack(protocol.Fetch(1, 0, [protocol.Gather(0, 0, 1)]), np.array([-1])),
    "head": protocol.pack(protocol.Fetch(1, 0, [protocol.Gather(2, 1, 1)]), np.array([0])),
    "layer": protocol.pack(protocol.Fetch(1, 0, [protocol.Gather(3, 0, 1)]), np.array([0])),
    "short query": [*valid_score()[:2], valid_score()[2][:-4]],
    "even pool": protocol.pack(
        protocol.Score(1, 1, [protocol.Query(0, 0, 1, 1, 2)]), np.array([0], np.int32), np.ones(4, np.float32)
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_answered_with_an_error(name: str, bench: Bench) -> None:
    answer = bench.answer(WRONG[name])
    assert isinstance(answer, protocol.Error) and answer.reason and answer.incarnation == 3
    assert still_works(bench)


def test_valid_requests_are_served(bench: Bench) -> None:
    assert still_works(bench)
    scored = bench.answer(valid_score())
    assert isinstance(scored, protocol.Scored) and scored.counts == [2, 5]
    assert scored.echo == protocol.checksum(valid_score())
    assert bench.answer(protocol.pack(protocol.Ping(9))) == protocol.Pong(3, 9)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_random_frames_get_an_answer(bench: Bench, frames: list[bytes]) -> None:
    assert bench.answer(frames) is not None


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.booleans(), st.integers(0, 2**32 - 1))
def test_damaged_requests_get_an_answer(bench: Bench, fetch: bool, seed: int) -> None:
    rng = random.Random(seed)
    frames = [bytearray(frame) for frame in (valid_fetch() if fetch else valid_score())]
    for _ in range(rng.randint(1, 4)):
        frame = rng.choice(frames[:1] * 3 + frames)
        at = rng.randrange(len(frame) + 1)
        if rng.random() < 0.6 and at < len(frame):
            frame[at] = rng.randrange(256)
        elif rng.random() < 0.5:
            frame.insert(at, rng.randrange(256))
        elif len(frame) > 1:
            del frame[at - 1 : at]
    assert bench.answer([bytes(frame) for frame in frames]) is not None


def test_after_all_that_it_still_works(bench: Bench) -> None:
    assert still_works(bench)
