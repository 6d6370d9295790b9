"""Laws of a working set: every row one token, the newest tokens in the ring, pages given back once."""

from __future__ import annotations

import torch
from core_helpers import make_settings, random_profile
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.working_set import WorkingSet, ring_row


@given(cap=st.integers(10, 60), window=st.integers(1, 8), extra=st.integers(0, 100))
def test_the_ring_always_holds_the_last_window_tokens(cap: int, window: int, extra: int) -> None:
    rows: dict[int, int] = {}
    for token in range(cap + extra):
        rows[int(ring_row(token, cap, window))] = token
    assert len(rows) == min(cap, cap + extra)
    held = set(rows.values())
    last = cap + extra
    assert set(range(last - window, last)) <= held
    assert set(range(cap - window)) <= held  # what is not ring is never overwritten by new tokens


@given(cap=st.integers(1, 8), window=st.integers(1, 8), token=st.integers(0, 50))
def test_a_row_always_lies_within_its_head(cap: int, window: int, token: int) -> None:
    assert 0 <= int(ring_row(token, cap, window)) < cap


@given(seed=st.integers(0, 50), prompt=st.integers(1, 300), max_new=st.integers(0, 200))
def test_rows_of_a_request_are_distinct_and_its_own(seed: int, prompt: int, max_new: int) -> None:
    settings = make_settings(random_profile(seed))
    pool = HotPool(3000, settings.rule.page_size, 4, 4, torch.float32, "cpu")
    other = pool.alloc(seed % 7)
    ws = WorkingSet(pool, settings.rule, settings.rule.grant(prompt, max_new))
    assert ws.pages.numel() == settings.rule.demand(settings.rule.grant(prompt, max_new))
    flat = torch.cat([ws.flat(h, torch.arange(cap)) for h, cap in enumerate(ws.caps)])
    assert flat.unique().numel() == flat.numel()
    assert not torch.isin(flat // settings.rule.page_size, other).any()
    token = prompt + max_new - 1 if prompt + max_new else 0
    for head, cap in enumerate(ws.caps):
        row = int(ring_row(token, cap, settings.rule.window))
        assert ws.rows_of_token(token)[head] == ws.flat(head, torch.tensor([row]))[0]
    ws.release()
    pool.check_integrity(other)


@given(seed=st.integers(0, 50), prompt=st.integers(1, 300), scattered=st.booleans())
def test_the_table_and_the_runs_say_what_the_lists_say(seed: int, prompt: int, scattered: bool) -> None:
    settings = make_settings(random_profile(seed))
    pool = HotPool(3000, settings.rule.page_size, 4, 4, torch.float32, "cpu")
    if scattered:  # pages come back in another order than they went
        pool.free(pool.alloc(3000)[torch.randperm(3000, generator=torch.Generator().manual_seed(seed))])
    ws = WorkingSet(pool, settings.rule, settings.rule.grant(prompt, 5000))
    for grown in (False, True):
        if grown:
            ws.grow()
        for head, pages in enumerate(ws.tables):
            assert torch.equal(ws.table[head, : pages.numel()], pages)
            whole = pages.numel() > 0 and bool((pages.diff() == 1).all())
            assert ws.runs[head] == (int(pages[0]) if whole else -1)
        assert grown or scattered or min(ws.runs, default=0) >= 0


@given(seed=st.integers(0, 30), length=st.integers(64, 400))
def test_filling_places_sinks_selection_and_ring_once_each(seed: int, length: int) -> None:
    settings = make_settings(random_profile(seed))
    rule = settings.rule
    pool = HotPool(4000, rule.page_size, 4, 4, torch.float32, "cpu")
    ws = WorkingSet(pool, rule, rule.grant(length, 0))
    for head, cap in enumerate(ws.caps):
        if cap >= length:
            continue
        middle = torch.randperm(length - rule.window - rule.sink)[: ws.selected_rows(head).numel()] + rule.sink
        rows, positions = ws.layout_of(head, length, middle.sort().values)
        assert torch.equal(rows.sort().values, torch.arange(cap))
        assert positions.unique().numel() == cap
        newest = dict(zip(rows.tolist(), positions.tolist(), strict=True))[int(ring_row(length - 1, cap, rule.window))]
        assert newest == length - 1


@given(seed=st.integers(0, 30), length=st.integers(64, 400), more=st.integers(0, 40))
def test_a_head_is_refilled_if_it_chooses_as_many_rows_as_it_always_holds(seed: int, length: int, more: int) -> None:
    settings = make_settings(random_profile(seed))
    pool = HotPool(4000, settings.rule.page_size, 4, 4, torch.float32, "cpu")
    ws = WorkingSet(pool, settings.rule, settings.rule.grant(length, more))
    for now in (length, length + more):
        open_ = ws.refillable(now)
        assert open_.shape == (len(ws.caps),)
        for head, cap in enumerate(ws.caps):
            always = cap - ws.selected_rows(head).numel()
            assert open_[head] == (cap < now and cap - always >= always)
