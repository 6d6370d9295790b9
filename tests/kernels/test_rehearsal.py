"""The made-up request before the first real one: it goes all the way, and nothing of it stays."""

from __future__ import annotations

import sys
from dataclasses import astuple
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import GROUP, make_cache, make_settings, random_profile
from test_device_engine import DEVICE, device_cache

from hetero_sglang.cache.hot_pool import EMPTY
from hetero_sglang.engine.device_engine import DeviceEngine
from hetero_sglang.engine.rehearsal import rehearse

CONTEXT = 512


def test_all_is_done_once_and_nothing_stays() -> None:
    settings = make_settings(random_profile(4, layers=3, heads=5), drift_threshold=0.9, monitor_interval=2)
    cache = device_cache(make_cache(settings))
    engine = DeviceEngine(cache, 8, CONTEXT, 5 * GROUP)
    table = torch.zeros(8, CONTEXT, dtype=torch.int32, device=DEVICE)
    queries = engine.make_step(2, CONTEXT).queries
    assert not rehearse(cache, engine.monitor, queries, table), "there is no worker yet"
    cache.fetcher.start_worker(pin=cache.hot.k.is_cuda)
    assert rehearse(cache, engine.monitor, queries, table)
    assert cache.fetcher.client.stats.rows > 0 and cache.fetcher.client.stats.scores > 0
    assert not any(astuple(cache.counters)) and not cache.requests and not cache.fetcher.under_way
    assert cache.hot.available == cache.hot.pages and bool((cache.hot.position == EMPTY).all())
    cache.fetcher.client.ring.check_integrity()
    assert cache.fetcher.client.ring.free_rows == cache.fetcher.client.ring.rows
    cache.check_integrity()
    cache.close()


def test_live_requests_are_left_alone() -> None:
    settings = make_settings(random_profile(4, layers=3, heads=5), drift_threshold=0.9)
    cache = device_cache(make_cache(settings))
    engine = DeviceEngine(cache, 8, CONTEXT, 5 * GROUP)
    cache.fetcher.start_worker(pin=cache.hot.k.is_cuda)
    held = cache.start(0, cache.admission.grant(90, 10))
    table = torch.zeros(8, CONTEXT, dtype=torch.int32, device=DEVICE)
    assert not rehearse(cache, engine.monitor, engine.make_step(2, CONTEXT).queries, table)
    assert cache.requests == {0: held} and cache.counters.fetches == 0
    cache.close()
