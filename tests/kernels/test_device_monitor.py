"""Drift and fetches of the device engine against the torch engine's: the same looks, rows and outputs."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import DIM, GROUP, Request, decode, held_positions, make_cache, make_settings, prefill, random_profile
from test_device_engine import DEVICE, device_cache, extend, step

from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.config import development
from hetero_sglang.engine import device_monitor
from hetero_sglang.engine.device_engine import DeviceEngine
from hetero_sglang.engine.device_monitor import DeviceMonitor

PROMPTS = (70, 100, 24)  # two that are compressed; the interpreter takes milliseconds per token
STEPS = 8


def pair(seed: int, **options: object) -> tuple[TieredCache, TieredCache]:
    """Two caches of the same settings with a worker each: the torch engine's and the device's."""
    settings = make_settings(random_profile(seed, layers=2, heads=5), **options)
    theirs = make_cache(settings)
    ours = device_cache(theirs)
    for cache in (theirs, ours):
        cache.fetcher.start_worker(pin=cache.hot.k.is_cuda)
        assert cache.fetcher.client.wait_up(20)
    return theirs, ours


def begin(caches: tuple[TieredCache, ...], seed: int) -> list[list[Request]]:
    """Requests in every cache, token for token alike; their prompts are run."""
    slots, made, start = torch.randperm(599, generator=torch.Generator().manual_seed(seed)) + 1, [], 0
    for slot, prompt in enumerate(PROMPTS, start=1):
        mine = slots[start : start + prompt + 60]
        made.append([Request(cache, slot, prompt, prompt + 60, mine, seed=seed * 10 + slot) for cache in caches])
        start += prompt + 60
    for row in made:
        for request in row:
            request.start()
    return [list(column) for column in zip(*made, strict=True)]


@pytest.mark.parametrize(
    ("seed", "retrieval"),
    [
        (1, "accumulate"),
        (5, "replace"),
        pytest.param(1, "replace", marks=pytest.mark.slow),
        pytest.param(5, "accumulate", marks=pytest.mark.slow),
    ],
)
def test_the_same_heads_drift_and_take_in_the_same_rows(
    seed: int, retrieval: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(development, "waits", lambda: True)
    theirs, ours = pair(seed, drift_threshold=0.8, monitor_interval=2, anchor_interval=2, retrieval=retrieval)
    engine = DeviceEngine(ours, 8, 2048, 5 * GROUP)
    wanted, given = begin((theirs, ours), seed)
    prefill(wanted, [(0, p) for p in PROMPTS])
    extend(engine, given, [(0, p) for p in PROMPTS])
    for extra in range(1, STEPS):
        lengths = [p + extra for p in PROMPTS]
        want, have = decode(wanted, lengths), step(engine, given, lengths, 4)
        torch.testing.assert_close(have.cpu(), want, atol=3e-5, rtol=3e-5)
        for one, other, length in zip(wanted, given, lengths, strict=True):
            for number in range(theirs.settings.layout.num_compressed):
                ring_less = held_positions(one, number, length).sort().values
                mine = held_positions(other, number, length).cpu().sort().values
                assert ring_less.unique().numel() == ring_less.numel()
                if extra % 2:  # after a look the torch engine asks at once, the device before its next step
                    assert torch.equal(ring_less, mine)
    theirs.fetcher.publish()
    engine.monitor.tick()
    for name in ("drift_checks", "drift_triggers", "anchor_refreshes", "fetched_rows"):
        assert getattr(theirs.counters, name) == getattr(ours.counters, name) > 0, name
    assert ours.counters.failed_fetches == ours.counters.refused_fetches == ours.counters.dropped_rows == 0
    theirs.close()
    ours.close()


def test_rows_come_while_steps_go_on_and_each_token_is_held_once() -> None:
    settings = make_settings(
        random_profile(10, layers=2, heads=5), drift_threshold=1.0, monitor_interval=1, anchor_interval=2
    )
    ours = device_cache(make_cache(settings))
    ours.fetcher.start_worker(pin=ours.hot.k.is_cuda)
    assert ours.fetcher.client.wait_up(20)
    engine = DeviceEngine(ours, 8, 2048, 5 * GROUP)
    engine.monitor = DeviceMonitor(  # room for a layer or two: looks take turns
        settings,
        ours.resident,
        ours.hot,
        engine.tables,
        ours.fetcher,
        ours.counters,
        engine.write_back,
        400,
        GROUP,
        floats=2000,
    )
    (given,) = begin((ours,), 4)
    extend(engine, given, [(0, p) for p in PROMPTS])
    rng = random.Random(0)
    for extra in range(1, 12):
        lengths = [p + extra for p in PROMPTS]
        step(engine, given, lengths, 4)
        time.sleep(rng.random() * 0.01)
        for request, length in zip(given, lengths, strict=True):
            for layer, spec in enumerate(settings.layout.layers):
                for index, head in enumerate(spec.compressed):
                    positions = held_positions(request, spec.first + index, length).cpu()
                    assert positions.unique().numel() == positions.numel() and positions.min() >= 0
                    assert set(range(length - settings.rule.window, length)) <= set(positions.tolist())
                    rows = request.ws.flat(spec.first + index, torch.arange(positions.numel()))
                    assert torch.equal(ours.hot.k.view(-1, DIM)[rows].cpu(), request.k[layer][positions, head])
                    assert torch.equal(ours.hot.v.view(-1, DIM)[rows].cpu(), request.v[layer][positions, head])
    counters = ours.counters
    assert counters.fetched_rows > 20 and counters.drift_triggers > 10 and counters.anchor_refreshes > 2
    assert counters.failed_fetches == counters.dropped_rows == 0
    ours.check_integrity()
    ours.close()


def test_what_comes_for_a_request_that_has_ended_is_dropped() -> None:
    theirs, ours = pair(10, drift_threshold=1.0, monitor_interval=1, anchor_interval=2)
    theirs.close()
    engine = DeviceEngine(ours, 8, 2048, 5 * GROUP)
    (given,) = begin((ours,), 5)
    extend(engine, given, [(0, p) for p in PROMPTS])
    for extra in range(1, 4):
        step(engine, given, [p + extra for p in PROMPTS], 3)
    before = ours.counters.fetched_rows
    assert engine.monitor.under_way()
    for request in given:
        ours.finish(request.slot)
    torch.cuda.synchronize() if DEVICE.type == "cuda" else None
    deadline = time.monotonic() + 20
    while engine.monitor.under_way() and time.monotonic() < deadline:
        engine.monitor.tick()
    assert not engine.monitor.under_way() and ours.counters.fetched_rows == before
    ours.check_integrity()
    ours.close()


def test_a_forced_rate_refills_that_share_of_satellites(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair(10, drift_threshold=0.5, monitor_interval=1, anchor_interval=0)
    theirs.close()
    monkeypatch.setattr(development, "waits", lambda: True)
    engine = DeviceEngine(ours, 8, 2048, 5 * GROUP)
    (given,) = begin((ours,), 6)
    extend(engine, given, [(0, p) for p in PROMPTS])
    extra, counters = 0, ours.counters
    for rate, steps in ((0.0, 2), (0.3, 6), (1.0, 3)):
        monkeypatch.setattr(development, "fetch_rate", lambda rate=rate: rate)  # while the server runs
        checks, triggers, rows = counters.drift_checks, counters.drift_triggers, counters.fetched_rows
        for _ in range(steps):
            extra += 1
            step(engine, given, [p + extra for p in PROMPTS], 3)
        engine.monitor.tick()  # what the last step's look leads to
        assert (counters.fetched_rows - rows > 100 / 11 * steps * rate) == (rate > 0)
        share = (counters.drift_triggers - triggers) / (counters.drift_checks - checks)
        assert abs(share - rate) < 0.15 and (rate not in (0.0, 1.0) or share == rate)
    ours.close()


def test_the_median_of_the_latest_looks_decides() -> None:
    history = device_monitor.History.empty(3, 4)
    heads = np.array([1, 3])
    assert history.note(heads, np.array([0.2, 1.0])).tolist() == [0.2, 1.0]
    assert history.note(heads, np.array([0.4, 0.0])).tolist() == pytest.approx([0.3, 0.5])
    assert history.note(heads, np.array([0.9, 0.0])).tolist() == pytest.approx([0.4, 0.0])
    assert history.note(heads, np.array([0.9, 0.0])).tolist() == pytest.approx([0.9, 0.0])
    assert history.forget(1) == 4 and history.forget(0) == 0
    assert history.note(heads, np.array([0.5, 0.5])).tolist() == pytest.approx([0.5, 0.0])
