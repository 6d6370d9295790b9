"""The torch engine with its device tiers on a GPU, where it serves what the CUDA engine does not: as on the CPU."""

from __future__ import annotations

import pytest
import torch
from core_helpers import Request, decode, held_positions, make_cache, make_settings, prefill, random_profile
from test_engine import scattered_slots
from test_policies_in_engine import OTHERS, settings_of

from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.config import development
from hetero_sglang.config.settings import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
PROMPT, TOTAL = 230, 250
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def both(settings: Settings) -> list[Request]:
    """The same request on the CPU and on the GPU, its prompt run in two chunks."""
    requests = []
    for device in ("cpu", "cuda"):
        cache = make_cache(settings, device=device)
        cache.fetcher.start_worker(pin=device == "cuda")
        assert cache.fetcher.client is None or cache.fetcher.client.wait_up(20)
        requests.append(Request(cache, 1, PROMPT, TOTAL, scattered_slots(TOTAL, 3), 5))
        requests[-1].start()
    for span in ((0, 150), (150, PROMPT)):
        theirs, ours = (prefill([request], [span]) for request in requests)
        torch.testing.assert_close(torch.stack([x[0] for x in ours]), torch.stack([x[0] for x in theirs]), **CLOSE)
    return requests


def same(requests: list[Request]) -> None:
    """Outputs and held tokens of some steps."""
    caches: list[TieredCache] = [request.cache for request in requests]
    for length in range(PROMPT + 1, TOTAL):
        theirs, ours = (decode([request], [length]) for request in requests)
        torch.testing.assert_close(ours, theirs, **CLOSE)
        for number in range(caches[0].settings.layout.num_compressed):
            held = [held_positions(request, number, length).sort().values for request in requests]
            assert torch.equal(*held)
    assert caches[0].counters == caches[1].counters
    for cache in caches:
        cache.check_integrity()
        cache.close()


@pytest.mark.parametrize("name", OTHERS)
def test_policies(name: str) -> None:
    same(both(settings_of(name)))


@pytest.mark.parametrize("reassign", [False, True])
def test_drift_and_fetches(reassign: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(development, "waits", lambda: True)
    profile = random_profile(4, layers=3, heads=5)
    requests = both(
        make_settings(profile, drift_threshold=0.8, anchor_interval=2, fetch="same-step", reassign=reassign)
    )
    same(requests)
    assert requests[1].cache.counters.fetched_rows > 0
