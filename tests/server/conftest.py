"""Real servers, started once and shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.launch import RECALL, Server
from benchmarks.recall import Language


@pytest.fixture(scope="session")
def language() -> Language:
    return Language.load(RECALL)


@pytest.fixture(scope="session")
def small_server() -> Iterator[Server]:
    """Little room: 6000 token slots, page size 16, every few steps a forced retraction."""
    env = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"}
    room = {"page_size": 16, "max_total_tokens": 6000, "chunked_prefill_size": 512}
    policy = {"kv_policy": "heterocache", "hetero_keep_ratio": 0.6, "hetero_window": 16, "hetero_dense_below": 512}
    with Server(**room, **policy, env=env) as server:
        yield server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The default policy at keep ratio 0.5."""
    with Server(kv_policy="heterocache", max_total_tokens=60000, enable_metrics=True) as started:
        yield started
