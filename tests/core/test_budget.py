"""Caps and sizes: the keep ratio is what the device really spends."""

from __future__ import annotations

import pytest
from core_helpers import demand, make_settings, random_profile
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.cache.admission import Admission
from hetero_sglang.cache.budget import Budget, Unused
from hetero_sglang.cache.sizes import Shape, Sizes, Workspaces, slots_within, table
from hetero_sglang.config.caps import Grant
from hetero_sglang.config.layout import build_layout
from hetero_sglang.config.settings import resolve
from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.heterocache import HeteroCache

SHAPE = Shape(64, 64, 2)


@given(seed=st.integers(0, 200), ratio=st.floats(0.0, 1.0))
def test_rows_kept_are_the_keep_ratio_of_dense(seed: int, ratio: float) -> None:
    profile = random_profile(seed)
    keep = profile.floor + (1 - profile.floor) * max(ratio, 0.2)
    settings = make_settings(profile, keep_ratio=keep, dense_below=4096)
    length = 8192
    rows = settings.rule.rows(Grant(length - 1, length, length, whole=False))
    kept = int(rows.caps.sum()) + profile.num_resident * length
    assert kept == pytest.approx(keep * profile.num_heads * length, rel=0.002)


@given(seed=st.integers(0, 100), slots=st.integers(1000, 200_000))
def test_capacity_is_one_over_the_keep_ratio_of_dense_in_equal_bytes(seed: int, slots: int) -> None:
    profile = random_profile(seed, layers=8)
    keep = (profile.floor + 1) / 2
    layout = build_layout(profile, keep)
    budget = slots * profile.num_heads * SHAPE.row
    have = slots_within([layout], SHAPE, 16, budget, None, joint=False)
    sizes = Sizes(SHAPE, layout, 16, have)
    assert sizes.device_bytes <= budget
    rounding = layout.num_compressed * 16 * 16 * SHAPE.hot_row  # room for half-empty last pages
    assert have >= (budget - rounding) / (keep * profile.num_heads * SHAPE.row) * 0.965 - 1


def test_the_poorest_rank_and_the_host_limit_decide() -> None:
    profile = random_profile(3, layers=4, heads=4)
    layouts = [build_layout(profile, 0.9, rank, 2) for rank in range(2)]
    alone = [slots_within([layout], SHAPE, 16, 10_000_000, None, False) for layout in layouts]
    assert slots_within(layouts, SHAPE, 16, 10_000_000, None, False) == min(alone)
    tight = slots_within(layouts, SHAPE, 16, 10_000_000, 100 * SHAPE.row, False)
    assert tight == min(100 // layout.num_compressed for layout in layouts if layout.num_compressed)


def test_ranks_together_hold_every_head_once() -> None:
    for seed in range(20):
        profile = random_profile(seed)
        whole = build_layout(profile, 0.95)
        parts = [build_layout(profile, 0.95, rank, 2) for rank in range(2)]
        assert sum(p.num_resident for p in parts) == whole.num_resident
        assert sum(p.num_compressed for p in parts) == whole.num_compressed
        assert sum(sum(p.fractions) for p in parts) == pytest.approx(sum(whole.fractions))


def test_the_startup_table_names_what_goes_where() -> None:
    settings = make_settings(random_profile(2), window=8, dense_below=512)
    sizes = Sizes(SHAPE, settings.layout, 16, 50_000)
    admission = Admission(settings.rule, [settings.layout.fractions], [sizes.hot_pages])
    text = table(sizes, admission, 40_000, Workspaces.of(SHAPE, settings.layout, 40_000, True))
    for word in ("resident store", "hot pool", "host store", "workspaces", "token slots 50000"):
        assert word in text
    # eight and a half of 4096 tokens and one of the longest by slots; nothing longer than that is offered
    assert "of 4K, " in text and "1 of 32K, 1 of the longest, 40000 tokens" in text and "128K" not in text
    assert admission.concurrent(4096) == sizes.hot_pages // demand(settings, 4095, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keep_ratio": 0.01}, "choose a ratio above"),
        ({"keep_ratio": 1.5}, "is not in"),
        ({"window": 4000, "dense_below": 512}, "--hetero-dense-below to at least"),
        ({"drift_threshold": 1.2}, "0 switches retrieval off"),
        ({"window": 0}, "--hetero-window 0 must be at least 1"),
        ({"monitor_interval": 0}, "--hetero-monitor-interval 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_recipe(change: dict, words: str) -> None:
    profile = random_profile(1)
    options = {
        "policy": HeteroCache(),
        "keep_ratio": 0.9,
        "window": 32,
        "sink": 4,
        "dense_below": None,
        "drift_threshold": 0.5,
    }
    with pytest.raises(HeteroError, match=words):
        resolve(profile, **{**options, "monitor_interval": 4, **change})


def test_a_refused_window_is_legal_at_the_length_the_message_gives() -> None:
    import re

    profile = random_profile(1)
    base = {
        "policy": HeteroCache(),
        "keep_ratio": 0.9,
        "sink": 4,
        "drift_threshold": 0.5,
        "monitor_interval": 4,
    }
    with pytest.raises(HeteroError) as refusal:
        resolve(profile, window=4000, dense_below=512, **base)
    needed = int(re.search(r"at least (\d+)", str(refusal.value)).group(1))
    resolve(profile, window=4000, dense_below=needed, **base)


def test_device_memory_that_the_host_s_leaves_unused_is_told() -> None:
    """Only where the host bounds the slots, by far, and nobody asked for fewer."""
    budget = Budget(make_settings(random_profile(2)), SHAPE, 1000, False)
    device_bytes = 10_000_000
    alone = budget.slots(device_bytes, None)
    sizes = budget.sizes(alone)[0]
    few = budget.slots(device_bytes, alone // 4 * sizes.host_bytes_per_slot)
    assert few == alone // 4 and budget.unused(device_bytes, few) == pytest.approx(0.75, abs=0.01)
    assert budget.unused(device_bytes, alone) == 0
    told = Unused(few, device_bytes, 0.75)
    assert "0.0075 of 0.01 GB" in told.said(few, 0.2) and "up to 0.8)" in told.said(few, 0.2)
    assert "up to 1)" in told.said(few, 0.5)
    assert not told.said(few // 2, 0.2) and not Unused(alone, device_bytes, 0.0).said(alone, 0.2)
