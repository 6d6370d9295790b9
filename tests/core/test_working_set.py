"""Laws of a working set: every row one token, the newest tokens in the ring, pages given back once."""

from __future__ import annotations

import torch
from core_helpers import demand, flat_rows, make_settings, random_profile, selected_rows
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.working_set import WorkingSet, ring_row

SINK = 2


@given(cap=st.integers(12, 60), window=st.integers(1, 8), extra=st.integers(0, 100))
def test_the_ring_always_holds_the_last_window_tokens(cap: int, window: int, extra: int) -> None:
    rows: dict[int, int] = {}
    for token in range(cap + extra):
        rows[int(ring_row(token, cap, SINK, window))] = token
    assert len(rows) == min(cap, cap + extra)
    held = set(rows.values())
    last = cap + extra
    assert set(range(last - window, last)) <= held
    assert set(range(cap - window)) <= held  # what is not ring is never overwritten by new tokens


@given(cap=st.integers(1, 8), window=st.integers(1, 8), token=st.integers(0, 50))
def test_a_row_always_lies_within_its_head(cap: int, window: int, token: int) -> None:
    assert 0 <= int(ring_row(token, cap, SINK, window)) < cap


@given(seed=st.integers(0, 50), prompt=st.integers(1, 300), max_new=st.integers(0, 200))
def test_rows_of_a_request_are_distinct_and_its_own(seed: int, prompt: int, max_new: int) -> None:
    settings = make_settings(random_profile(seed))
    pool = HotPool(3000, settings.rule.page_size, 4, 4, torch.float32, "cpu")
    other = pool.alloc(seed % 7)
    ws = WorkingSet(pool, settings.rule, settings.rule.grant(prompt, max_new))
    assert ws.pages.numel() == demand(settings, prompt, max_new)
    flat = torch.cat([flat_rows(ws, h, torch.arange(cap)) for h, cap in enumerate(ws.caps)])
    assert flat.unique().numel() == flat.numel()
    assert not torch.isin(flat // settings.rule.page_size, other).any()
    ws.release()
    pool.check_integrity(other)


@given(seed=st.integers(0, 30), length=st.integers(64, 400), more=st.integers(0, 40))
def test_a_head_is_refilled_if_it_chooses_as_many_rows_as_it_always_holds(seed: int, length: int, more: int) -> None:
    settings = make_settings(random_profile(seed))
    pool = HotPool(4000, settings.rule.page_size, 4, 4, torch.float32, "cpu")
    ws = WorkingSet(pool, settings.rule, settings.rule.grant(length, more))
    for now in (length, length + more):
        open_ = ws.refillable(now)
        assert open_.shape == (len(ws.caps),)
        for head, cap in enumerate(ws.caps):
            always = cap - selected_rows(ws, head).numel()
            assert open_[head] == (cap < now and cap - always >= always)
