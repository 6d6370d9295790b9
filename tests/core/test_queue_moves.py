"""Law: where nothing runs and a request waits, one step later something runs; every rank decides alike; none is lost.

SGLang's own passes over the queue, with our hooks, on one rank or several (queue_world.py).
"""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import replace

import pytest
from core_helpers import random_profile
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_world import ADAPTERS, CLIP, Batch, Req, World, acting, sglang_world  # noqa: F401  (a fixture)
from test_lazy_heads import indexed_profile

from hetero_sglang.config.settings import resolve
from hetero_sglang.policy.heterocache import HeteroCache, IndexedHeads
from hetero_sglang.profile.head_profile import HeadProfile, scale_weights
from hetero_sglang.sglang import admit, reporting

pytestmark = pytest.mark.usefixtures("sglang_world")


def make_worlds(seed: int, size: int, indexed: bool = False, **options: object) -> list[World]:
    """Every rank of a server with a random profile, ratio and room; `indexed`: all heads have a key index."""
    rng = random.Random(seed)
    profile = indexed_profile(seed, rng.choice((1, 4)), heads=4) if indexed else random_profile(seed, layers=3, heads=4)
    slots = rng.choice((700, 2500) if indexed else (200, 700, 2500))
    limits = {
        "requests": rng.choice((8, 16) if indexed else (2, 4, 16)),
        "chunk": rng.choice((None, 64, 256)),
        "preemption": rng.random() < 0.5,
        **options,
    }
    ratio = profile.floor + (1 - profile.floor) * rng.choice((0.2 if indexed else 0.02, 0.3, 0.9))
    # Shares may fall to a quarter; who has the second adapter goes by the model's.
    adapters = {"a": reweighted(profile, rng)} if rng.choice((0, 1)) else {}
    shared = {
        "policy": IndexedHeads() if indexed else HeteroCache(),
        "keep_ratio": ratio,
        "window": rng.choice((2, 16)),
        "sink": 2,
        "dense_below": rng.choice((None, 8192 if adapters else 2048, 8192)),
        "reserve": rng.choice((32, CLIP)),
        "drift_threshold": 0.9,
        "monitor_interval": 4,
        "adapters": adapters,
    }
    return [World(resolve(profile, rank=rank, size=size, **shared), slots, **limits) for rank in range(size)]


def reweighted(profile: HeadProfile, rng: random.Random) -> HeadProfile:
    """The same heads with other weights."""
    layers = (replace(layer, weights=tuple(w * rng.uniform(0.5, 2) for w in layer.weights)) for layer in profile.layers)
    return replace(profile, layers=scale_weights(tuple(layers)))


class Play:
    """The same events on every rank; the laws after each."""

    def __init__(self, worlds: list[World], seed: int, turns: bool = False) -> None:
        self.turns = turns
        self.worlds, self.rng = worlds, random.Random(seed)
        self.sent: list[int] = []
        self.held = False

    def submit(self) -> None:
        total = self.worlds[0].total
        prompt = min(self.rng.choice((1, 20, 300, total)), total - 4)
        most = total - prompt - 3  # as Scheduler.init_req_max_new_tokens bounds it
        new, priority = min(self.rng.choice((1, 8, 100, 5000)), most), self.rng.choice((1, 1, 1, 100))
        self._send(prompt, new, priority, self.rng.choice((None, *ADAPTERS)))

    def go_on(self) -> None:
        """Of one or more that have been answered: somebody asks on, or several do, the same or each something else."""
        total, known = self.worlds[0].total, list(self.worlds[0].tree_cache.known)
        for before, adapter in self.rng.sample(known, min(len(known), self.rng.choice((1, 1, 2, 4)))):
            kept = before[: max(1, len(before) - self.rng.choice((0, 0, 0, 1, 5, 300)))].tolist()
            count, new = self.rng.choice((0, 1, 3, 40)), self.rng.choice((1, 8, 100))
            priority = self.rng.choice((1, 100))
            told, same = len(self.sent), self.rng.random() < 0.5
            for _ in range(self.rng.choice((1, 1, 2, 6))):
                prompt = (kept + [-1 - (told if same else len(self.sent))] * count)[: total - 4]
                mine = self.rng.choice((adapter, adapter, *ADAPTERS, None))
                self._send(prompt, min(new, total - len(prompt) - 3), priority, mine)

    def _send(self, prompt: int | list[int], new: int, priority: int, adapter: str | None) -> None:
        rid = len(self.sent)
        self.sent.append(rid)
        for world in self.worlds:
            world.waiting_queue.append(Req(rid, prompt, new, priority, adapter))

    def step(self) -> None:
        if self.held:
            return
        first = self.worlds[0]
        stuck = first.running_batch.is_empty() and first.last_batch is None and first.chunked_req is None
        waiting = len(first.waiting_queue)
        for world in self.worlds:
            world.step()
            world.check()
        for other in self.worlds[1:]:
            assert other.trace[-1] == first.trace[-1], "ranks chose different batches"
        if stuck and waiting:
            batch, _, _ = first.trace[-1]
            assert batch, f"nothing ran, {waiting} requests waited, and still nothing runs"

    def event(self) -> None:
        kinds = ("retract", "pause", "hold", "abort", "abort all", "flush")  # pause_generation's modes among them
        kind = self.rng.choice(("submit",) * 3 + ("go on",) * 3 * self.turns + ("step",) * 4 + kinds)
        first = self.worlds[0]
        choice = self.rng.random()
        if kind == "submit":
            self.submit()
        elif kind == "go on":
            self.go_on()
        elif kind == "step":
            for _ in range(self.rng.choice((1, 3, 40))):
                self.step()
        elif kind == "retract" and len(first.running_batch.reqs) > 1:
            index = int(choice * len(first.running_batch.reqs))
            if not first.running_batch.reqs[index].done:
                for world in self.worlds:
                    world.retract(index)
        elif kind == "pause":
            for world in self.worlds:
                world.pause()
        elif kind == "abort" and first.live:
            rid = first.live[int(choice * len(first.live))].rid
            for world in self.worlds:
                world.abort(rid)
        elif kind == "abort all":
            for rid in [req.rid for req in first.live]:
                for world in self.worlds:
                    world.abort(rid)
        elif kind == "hold":  # in place: all keep what they hold, and go on when the engine does
            self.held = not self.held
        elif kind == "flush" and not first.live:
            for world in self.worlds:
                world.cache.reset()
                world.tree_cache.known.clear()
        for world in self.worlds:
            world.check()

    def drain(self) -> None:
        """Whoever is left is answered, once the engine goes on."""
        self.held = False
        for _ in range(20_000):
            if not self.worlds[0].live:
                break
            self.step()
        assert not self.worlds[0].live, f"{len(self.worlds[0].live)} requests were never answered"
        for world in self.worlds:
            assert world.available == world.total and world.cache.levels()["hot_pages_free"] == world.cache.hot.pages


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), events=st.integers(1, 30))
def test_whatever_happens_the_queue_moves_and_all_are_answered(seed: int, events: int) -> None:
    play = Play(make_worlds(seed, 1), seed)
    for _ in range(events):
        play.event()
    play.drain()


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), size=st.sampled_from((2, 4)), events=st.integers(1, 20))
def test_every_rank_lets_in_grows_and_preempts_alike(seed: int, size: int, events: int) -> None:
    play = Play(make_worlds(seed, size), seed)
    for _ in range(events):
        play.event()
    play.drain()


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), size=st.sampled_from((1, 1, 2)), events=st.integers(1, 40))
def test_turns_take_no_pages_that_are_another_s(seed: int, size: int, events: int) -> None:
    """Requests that go on from sets that have been left: alone, or several from one, in any order."""
    play = Play(make_worlds(seed, size, indexed=True), seed, turns=True)
    for _ in range(events):
        play.event()
    play.drain()


def lone(keep: float = 0.2, **options: object) -> World:
    profile = random_profile(4, layers=3, heads=4)
    ratio = profile.floor + (1 - profile.floor) * keep
    plain = {
        "policy": HeteroCache(),
        "window": 16,
        "sink": 4,
        "dense_below": 8192,
        "drift_threshold": 0.9,
        "monitor_interval": 4,
    }
    room = {"slots": 7200, "requests": 16, "chunk": None, "preemption": False, **options}
    return World(resolve(profile, keep_ratio=ratio, **plain), **room)


def send(world: World, rid: int, prompt: int, new: int, priority: int = 1) -> Req:
    req = Req(rid, prompt, new, priority)
    world.waiting_queue.append(req)
    return req


def test_a_long_request_that_was_retracted_comes_back_and_lets_others_in() -> None:
    world = lone(keep=0.6)
    long = send(world, 0, 50, 5000)
    for _ in range(600):
        world.step()
    world.pause()
    other = send(world, 1, 3, 3)
    for _ in range(6):
        world.step()
        world.check()
    assert other.done and long.req_pool_idx is not None


def test_a_request_of_high_priority_preempts_for_hot_pages_and_nobody_is_lost() -> None:
    """Slots are plenty; pages are short, as every request below dense_below is kept whole."""
    world = lone(keep=0.3, preemption=True, requests=16)
    low = [send(world, rid, 112, 370) for rid in range(8)]
    for _ in range(3):
        world.step()
    running = [req for req in low if req.req_pool_idx is not None]
    assert running and len(world.waiting_queue) + len(running) == len(low)
    high = send(world, 99, 1500, 8, priority=100)
    assert not world.cache.admission.fits(world.cache.admission.demand(world.cache.admission.grant(1500, 8)))
    for _ in range(2):
        world.step()
    assert high.req_pool_idx is not None, "it had to wait for requests of lower priority"
    for _ in range(5000):
        world.step()
        world.check()
        if not world.live:
            break
    assert high.done and all(req.done for req in low)


def test_a_pass_that_lets_nobody_in_leaves_the_queue_able_to_move() -> None:
    """Whatever SGLang's pass has done: the preempted wait again, and an empty batch is not full."""
    world = lone()
    gone = Req(7, 10, 10, 1)

    def fruitless(scheduler: World, running: Batch) -> tuple[None, Batch]:
        world.state.preempted = [gone]
        if admit.scheduling.REQUEUES:
            scheduler._add_request_to_queue(gone)
        running.batch_is_full = True
        return None, running

    with acting(world):
        batch, running = admit.choose_batch(fruitless, world, world.running_batch)
    assert batch is None and world.waiting_queue == [gone] and not running.batch_is_full


def test_a_queue_that_does_not_move_is_told(caplog: pytest.LogCaptureFixture) -> None:
    world = lone()
    world.forward_stream_ctx, world.is_fully_idle = nullcontext(), lambda: False
    world.waiting_queue = [Req(0, 10, 10, 1), Req(1, 10, 10, 1)]
    with acting(world):
        assert reporting._stuck(world) is None, "they have just come, however long nothing has run"
        reporting.idle(world)
        world.state.waiting_since -= 5
        assert reporting._stuck(world) is None, "it may be seconds until a batch"
        world.state.waiting_since -= 25
        assert "2 requests wait although nothing has run for 30 s" in (reporting._stuck(world) or "")
        for _ in range(2):
            reporting.idle(world)
        world._engine_paused = True
        assert reporting._stuck(world) is None, "a paused engine is meant to stand still"
    assert [record.message.count("requests wait") for record in caplog.records] == [1], "said once"


def test_preemption_that_would_not_be_enough_preempts_nobody() -> None:
    world = lone(keep=0.3, preemption=True)
    low = send(world, 50, 20, 300)
    world.step()
    equal = [send(world, rid, 112, 370, priority=100) for rid in range(6)]
    for _ in range(4):
        world.step()
    running = [r for r in (low, *equal) if r.req_pool_idx is not None]
    assert low in running
    high = send(world, 99, 4000, 8, priority=100)
    world.step()
    assert high.req_pool_idx is None and all(r.req_pool_idx is not None for r in running)
    for _ in range(3000):
        world.step()
        if not world.live:
            break
    assert high.done and low.done and all(req.done for req in equal)
