"""Anchors' rankings: right by plain torch, void for requests and slots that are gone, and never in the way."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transfer_helpers import ScoreItem, check_scored, wait_up
from waiting import PATIENCE_S

from hetero_sglang.cache.admission import Admission
from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config.settings import Settings, resolve
from hetero_sglang.ops.reference.attention import POOL
from hetero_sglang.policy.heterocache import HeteroCache
from hetero_sglang.profile.head_profile import HeadProfile, LayerRoles
from hetero_sglang.profile.roles import Role
from hetero_sglang.transfer import process, supervisor
from hetero_sglang.transfer.client import RetrievalClient, Scored
from hetero_sglang.transfer.ranking import Ranked, Ranking

DIM, GROUP, SLOTS = 16, 2, 400
HEADS = [(0, 0), (1, 0), (1, 1)]  # all that are compressed, by layer: numbers 0, 1, 2
FAKE = [sys.executable, str(Path(__file__).with_name("fake_worker.py"))]


def make_settings(**options: object) -> Settings:
    """Layers of three heads: of the first one is compressed, of the second two are."""
    layers = (
        LayerRoles((Role.VOLATILE, Role.VOLATILE, Role.ANCHOR), (0.0, 0.0, 1.0), (-1, -1, -1)),
        LayerRoles((Role.ANCHOR, Role.VOLATILE, Role.ANCHOR), (1.0, 0.0, 1.0), (-1, -1, -1)),
    )
    profile = HeadProfile(2, 3, 3 * GROUP, DIM, layers)
    given = {"keep_ratio": 0.75, "window": 6, "sink": 2, "dense_below": 64, "drift_threshold": 0.9, **options}
    return resolve(profile, policy=HeteroCache(), monitor_interval=2, **given)  # type: ignore[arg-type]


class World:
    """A ranking beside the stores that it needs."""

    def __init__(self) -> None:
        self.settings, self.counters = make_settings(), Counters()
        counts = [len(layer.compressed) for layer in self.settings.layout.layers]
        self.host = HostStore(SLOTS, counts, DIM, DIM, torch.float32)
        for blocks in self.host.blocks:
            blocks.copy_(torch.randn(blocks.shape))
        self.hot = HotPool(200, self.settings.rule.page_size, DIM, DIM, torch.float32, "cpu")
        self.admission = Admission(self.settings.rule, [self.settings.layout.fractions], [self.hot.pages])
        self.ranking = Ranking(self.settings, self.host, self.counters)

    def start(self, command: list[str] | None = None) -> None:
        """A worker of this command is up; None: a real one."""
        if command is None:
            self.ranking.start_worker()
        else:
            self.ranking.client = RetrievalClient(self.host, timeout_s=PATIENCE_S, command=command)
        assert self.ranking.client is not None and wait_up(self.ranking.client)

    def request(self) -> WorkingSet:
        return WorkingSet(self.hot, self.settings.rule, self.admission.grant(150, 10))

    def ask(self, ws: WorkingSet, slots: torch.Tensor, heads: list[tuple[int, int]] = HEADS) -> torch.Tensor:
        """The queries [A, G, D] that the heads were asked with, for 10, 11, ... tokens."""
        queries = torch.randn(len(heads), GROUP, DIM)
        self.ranking.ask(ws, slots, heads, queries, [10 + at for at in range(len(heads))])
        return queries

    def settle(self) -> list[Ranked]:
        """All that comes until nothing is under way."""
        found, end = self.ranking.poll(), time.monotonic() + PATIENCE_S
        while self.ranking.under_way:
            assert time.monotonic() < end, self.ranking.stats()
            time.sleep(0.002)
            found += self.ranking.poll()
        return found


@pytest.fixture
def world(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 0.01)
    world = World()
    yield world
    world.ranking.close()
    world.host.close()


def check(world: World, ranked: Ranked, query: torch.Tensor, slots: torch.Tensor, topk: int) -> None:
    """AssertionError unless it is the ranking of its head by plain torch."""
    item = ScoreItem(ranked.layer, ranked.head, query, topk, POOL)
    check_scored(world.host, slots, [item], Scored(0, [ranked.positions], [ranked.scores]))


def test_rankings_are_those_of_plain_torch(world: World) -> None:
    world.start()
    asked = []
    for length in (150, 40, 5):
        ws, slots = world.request(), torch.randperm(SLOTS)[:length]
        asked.append((ws, slots, world.ask(ws, slots)))
        assert ws.busy == {0, 1, 2}
    assert world.ranking.under_way == world.ranking.stats()["rankings_under_way"] == 3
    found = world.settle()
    assert len(found) == 9
    for ws, slots, queries in asked:
        own = [ranked for ranked in found if ranked.ws is ws]
        assert [(ranked.layer, ranked.head) for ranked in own] == HEADS and not ws.busy
        for at, ranked in enumerate(own):
            check(world, ranked, queries[at], slots, 10 + at)
    counters = world.counters
    assert (counters.anchor_refreshes, counters.refused_rankings, counters.failed_rankings) == (9, 0, 0)


def test_busy_heads_are_left_out(world: World) -> None:
    world.start()
    ws, slots = world.request(), torch.arange(100)
    ws.busy = {1}
    queries = world.ask(ws, slots)
    assert ws.busy == {0, 1, 2} and world.counters.anchor_refreshes == 2
    world.ask(ws, slots)
    assert world.ranking.under_way == 1, "asked again"
    found = world.settle()
    assert [(ranked.layer, ranked.head) for ranked in found] == [(0, 0), (1, 1)] and ws.busy == {1}
    for ranked, at in zip(found, (0, 2), strict=True):
        check(world, ranked, queries[at], slots, 10 + at)


def test_a_freed_slot_drops_the_ranking_and_another_s_does_not(world: World) -> None:
    world.start()
    first, second = world.request(), world.request()
    world.ask(first, torch.arange(100))
    world.ask(second, torch.arange(100, 200))
    world.host.release(torch.tensor([57]))
    assert {ranked.ws for ranked in world.settle()} == {second}
    assert not first.busy and not second.busy and world.counters.failed_rankings == 0
    world.ask(first, torch.arange(100))  # the slot is another token's now
    assert {ranked.ws for ranked in world.settle()} == {first}


def test_an_ended_request_drops_the_ranking(world: World) -> None:
    world.start()
    ended, living = world.request(), world.request()
    world.ask(ended, torch.arange(100))
    world.ask(living, torch.arange(100))
    ended.release()
    assert {ranked.ws for ranked in world.settle()} == {living}


def test_a_dead_worker_loses_its_rankings_and_frees_their_heads(world: World) -> None:
    world.start([*FAKE, "slow"])
    assert world.ranking.client is not None
    world.ranking.client._command = process.COMMAND
    ws, other = world.request(), world.request()
    world.ask(ws, torch.arange(100))
    world.ask(other, torch.arange(50), HEADS[:1])
    dead = world.ranking.stats()["worker_pid"]
    os.kill(int(dead), signal.SIGKILL)
    assert world.settle() == [] and not ws.busy and not other.busy
    assert world.counters.failed_rankings == 2 and not world.ranking.stats()["worker_up"]
    world.ask(ws, torch.arange(100))
    assert world.counters.refused_rankings == 1 and not ws.busy and world.ranking.under_way == 0
    assert wait_up(world.ranking.client)
    assert world.ranking.poll() == [] and world.counters.worker_restarts == 1
    queries = world.ask(ws, torch.arange(100))
    for at, ranked in enumerate(world.settle()):
        check(world, ranked, queries[at], torch.arange(100), 10 + at)
    stats = world.ranking.stats()
    assert stats["worker_up"] and stats["worker_pid"] != dead


@pytest.mark.parametrize("lie", ["other echo", "position out of range", "no number"])
def test_a_lie_is_no_ranking(lie: str, world: World) -> None:
    world.start([*FAKE, lie])
    ws = world.request()
    world.ask(ws, torch.arange(100), HEADS[:1])
    assert world.settle() == [] and not ws.busy and world.counters.failed_rankings == 1


def test_without_a_worker_nothing_is_asked(world: World) -> None:
    off = make_settings(drift_threshold=0.0)
    ranking = Ranking(off, world.host, world.counters)
    ranking.start_worker()
    ws = world.request()
    ranking.ask(ws, torch.arange(100), HEADS, torch.zeros(3, GROUP, DIM), [1, 2, 3])
    assert ranking.client is None and not ws.busy and ranking.poll() == []
    assert ranking.stats() == {"rankings_under_way": 0, "worker_up": False, "worker_pid": 0}
    assert world.counters == Counters()
    ranking.close()


def test_a_ranking_for_a_live_request_is_an_error_when_idle(world: World) -> None:
    world.start([*FAKE, "slow"])
    ws = world.request()
    ws.slot = 3
    world.ask(ws, torch.arange(100))
    world.ranking.check_integrity(idle=False)
    with pytest.raises(RuntimeError, match="1 rankings"):
        world.ranking.check_integrity(idle=True)
    ws.slot = -1
    world.ranking.check_integrity(idle=True)  # it is parked: its request has ended
    ws.release()
    world.ranking.check_integrity(idle=True)


def test_close_frees_all_heads_and_ends_the_worker(world: World) -> None:
    world.start([*FAKE, "slow"])
    ws = world.request()
    world.ask(ws, torch.arange(100))
    world.ranking.close()
    world.ranking.close()
    assert not ws.busy and world.ranking.under_way == 0 and world.ranking.stats()["worker_pid"] == 0


def test_where_runs_are_compared_a_poll_waits_for_the_answers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETERO_DEVELOPMENT", "1")
    monkeypatch.setenv("HETERO_WAIT_FOR_RANKINGS", "1")
    world.start()
    ws = world.request()
    world.ask(ws, torch.arange(150))
    assert len(world.ranking.poll()) == 3 and world.ranking.under_way == 0
