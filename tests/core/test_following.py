"""Satellites and pivots: rows come in the step whose pivot asks for them; satellites are given to another pivot."""

from __future__ import annotations

import pytest
import torch
from core_helpers import (
    DIM,
    GROUP,
    Request,
    decode,
    engine_of,
    held_positions,
    make_cache,
    make_settings,
    prefill,
    worker_up,
)
from hypothesis import given
from hypothesis import strategies as st
from test_engine import expect, scattered_slots

from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.engine.reassign import OWN, agreement
from hetero_sglang.profile.head_profile import HeadProfile, LayerRoles
from hetero_sglang.profile.roles import Role

PROMPT, TOTAL = 200, 240
HEADS = 5
# One layer: pivots 0 and 1, satellites 2 and 3 of pivot 0, satellite 4 of pivot 1.
ROLES = LayerRoles((Role.PIVOT,) * 2 + (Role.SATELLITE,) * 3, (0.0, 0.0, 1.0, 1.0, 1.0), (0, 1, 0, 0, 1))


def cache_of(**options: object) -> TieredCache:
    profile = HeadProfile(1, HEADS, HEADS * GROUP, DIM, (ROLES,))
    plain = {"drift_threshold": 0.5, "monitor_interval": 1, "anchor_interval": 4, "dense_below": 64}
    return make_cache(make_settings(profile, 0.7, **{**plain, **options}))


def look_at(request: Request, step: int, head: int, token: int) -> None:
    """From `step` on, the head's queries ask for `token` alone."""
    queries = request.q[0].view(TOTAL, HEADS, GROUP, DIM)
    queries[step:, head] = 40 * request.k[0][token, head] / request.k[0][token, head].norm()


def planted(cache: TieredCache, seed: int = 3) -> Request:
    """Satellites have the keys of their pivots."""
    request = Request(cache, 1, PROMPT, TOTAL, scattered_slots(TOTAL, seed), seed)
    request.k[0][:, 2:] = request.k[0][:, [0, 0, 1]]
    return request


def begun(cache: TieredCache) -> Request:
    """A planted request whose prompt is run."""
    request = planted(cache)
    request.start()
    prefill([request], [(0, PROMPT)])
    return request


def test_a_step_attends_to_what_its_pivot_asks_for() -> None:
    cache = cache_of()
    request = begun(cache)
    held = set(held_positions(request, 0, PROMPT).tolist())
    token = next(t for t in range(20, PROMPT - 20) if t not in held)
    for head in (0, 2, 3):
        look_at(request, PROMPT, head, token)
    out = decode([request], [PROMPT + 1])
    assert token in held_positions(request, 0, PROMPT + 1).tolist()
    moved = [head * GROUP + member for head in (2, 3) for member in range(GROUP)]
    torch.testing.assert_close(out[0, 0, moved], expect(request, 0, PROMPT)[moved], atol=0.02, rtol=0)
    torch.testing.assert_close(out[0, 0], expect(request, 0, PROMPT, whole=False), atol=1e-5, rtol=1e-4)
    assert cache.counters.late_rows == 0 and cache.counters.fetched_rows > 0


@pytest.mark.parametrize(("reassign", "follows"), [(True, 1), (True, None), (False, 1)])
def test_a_satellite_moves_to_the_pivot_it_resembles_or_to_none(reassign: bool, follows: int | None) -> None:
    cache = cache_of(reassign=reassign)
    try:
        request = planted(cache)
        if follows is not None:
            request.k[0][:, 3] = request.k[0][:, follows]
        request.start()
        prefill([request], [(0, PROMPT)])
        assert not reassign or worker_up(engine_of(cache))
        generator = torch.Generator().manual_seed(0)
        for step in range(PROMPT, TOTAL - 1):
            held = held_positions(request, 1, step)
            inner = [p for p in held.tolist() if 2 <= p < PROMPT - 20]
            one, other = (inner[int(i)] for i in torch.randperm(len(inner), generator=generator)[:2])
            look_at(request, step, 0, one)
            look_at(request, step, 2, one)
            for head in (1, 4):
                look_at(request, step, head, other if follows is not None else one)
            look_at(request, step, 3, other)
            out = decode([request], [step + 1])
            torch.testing.assert_close(out[0, 0], expect(request, 0, step, whole=False), atol=1e-5, rtol=1e-4)
        moved = engine_of(cache).finder.reassign.moved.get(request.ws, {}) if reassign else {}
        counts = (cache.counters.reassigned, cache.counters.orphaned)
        if not reassign:
            assert moved == {} and counts == (0, 0)
        elif follows is not None:
            assert moved == {(0, 1): follows} and counts[0] == 1
        else:
            assert moved == {(0, 1): OWN} and counts == (0, 1) and cache.counters.anchor_refreshes > 0
        cache.check_integrity()
    finally:
        engine_of(cache).close()
        cache.close()


@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 2**20))
def test_agreement_is_bounded_and_one_only_for_the_same_attention(rows: int, heads: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    own, others = torch.rand(rows, generator=generator), torch.rand(heads, rows, generator=generator)
    value = agreement(own, others)
    assert value.shape == (heads,) and bool((value >= 0).all()) and bool((value <= 1 + 1e-5).all())
    assert abs(float(agreement(own, 3 * own[None])[0]) - 1) < 1e-5
    assert float(agreement(torch.zeros(rows), others).max()) == 0.0
