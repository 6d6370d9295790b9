"""Law: nobody overtakes in the queue. A request that has to wait for hot pages lets nobody in who came after it.

So none is starved, however large it is and however many small ones come: those before it end, and it is next.
"""

from __future__ import annotations

import random
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_world import World, sglang_world  # noqa: F401  (a fixture)
from test_queue_moves import lone, make_worlds, send

pytestmark = pytest.mark.usefixtures("sglang_world")


def let_in(world: World) -> list[int]:
    """Requests in the order in which they were let in."""
    return list(dict.fromkeys(rid for batch, _, _ in world.trace for rid in batch))


def drain(world: World) -> None:
    for _ in range(20_000):
        if not world.live:
            return
        world.step()
    raise AssertionError(f"{len(world.live)} requests were never answered")


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 40))
def test_requests_are_let_in_as_they_came(seed: int, count: int) -> None:
    """Answers of one token: whose memory runs out in the middle of an answer goes to the queue's end, as in SGLang."""
    (world,) = make_worlds(seed, 1, preemption=False)
    rng = random.Random(seed)
    for rid in range(count):
        send(world, rid, min(rng.choice((1, 20, 300, world.total)), world.total - 4), 1)
        for _ in range(rng.choice((0, 0, 1, 5))):
            world.step()
    drain(world)
    assert let_in(world) == list(range(count))


def test_small_requests_that_keep_coming_do_not_starve_a_long_one() -> None:
    world = lone(keep=0.3)
    lengths = cycle((9, 17, 26, 40, 61))  # so that they do not all end at once
    small = [send(world, rid, 112, next(lengths)) for rid in range(12)]
    for _ in range(3):
        world.step()
    long = send(world, 100, 4000, 8)
    admission = world.cache.admission
    assert not admission.fits(admission.demand(admission.grant(4000, 8))), "it has to wait"
    ended, rid = 0, 200
    for _ in range(400):
        world.step()
        gone = [req for req in small if req.done]
        small = [req for req in small if not req.done]
        for _ in gone:  # each of these clients asks again at once
            small.append(send(world, rid, 112, next(lengths)))
            rid += 1
        ended += 0 if long.done else len(gone)
        if long.done:
            break
    assert long.done and ended <= 3 * 12, f"{ended} others ended before it"


def test_a_long_one_that_waits_holds_up_those_behind_it_until_there_is_room_and_no_longer() -> None:
    world = lone(keep=0.3)
    running = send(world, 0, 2000, 60)  # kept whole
    for _ in range(2):
        world.step()
    long, small = send(world, 1, 4000, 8), send(world, 2, 20, 4)
    admission = world.cache.admission
    assert not admission.fits(admission.demand(admission.grant(4000, 8))) and world.available > 4100
    for _ in range(20):
        world.step()
    assert not long.output_ids and not small.output_ids and not running.done
    for _ in range(100):
        world.step()
    assert running.done and long.done and small.done
