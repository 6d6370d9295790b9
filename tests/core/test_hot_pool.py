"""Conservation of hot pages: free and owned never overlap and always add up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.cache.hot_pool import EMPTY, HotPool


def small_pool(pages: int = 40) -> HotPool:
    return HotPool(pages, 4, 8, 8, torch.float32, "cpu")


@given(st.lists(st.one_of(st.integers(0, 15), st.just("free")), max_size=60), st.randoms())
def test_pages_are_conserved_under_any_sequence(steps: list, rng) -> None:
    pool, owned = small_pool(), []
    for step in steps:
        if step == "free":
            if owned:
                pool.free(owned.pop(rng.randrange(len(owned))))
        else:
            before, taken = pool.available, pool.alloc(step)
            assert (taken is None) == (step > before)
            if taken is not None:
                owned.append(taken)
        pool.check_integrity(torch.cat([torch.empty(0, dtype=torch.int64), *owned]))
    for pages in owned:
        pool.free(pages)
    assert pool.available == pool.pages


def test_a_page_freed_twice_raises() -> None:
    pool = small_pool()
    pages = pool.alloc(3)
    pool.free(pages)
    with pytest.raises(RuntimeError, match="freed twice"):
        pool.free(pages[:1])


def test_a_lost_page_is_found() -> None:
    pool = small_pool()
    pages = pool.alloc(5)
    with pytest.raises(RuntimeError, match="35 free \\+ 4 owned"):
        pool.check_integrity(pages[:4])


def test_a_page_owned_twice_is_found() -> None:
    pool = small_pool()
    pages = pool.alloc(2)
    with pytest.raises(RuntimeError):
        pool.check_integrity(torch.cat((pages[:1], pages[:1])))


def test_freed_pages_hold_no_token() -> None:
    pool = small_pool()
    pages = pool.alloc(2)
    pool.position[pages] = 7
    pool.free(pages)
    assert bool((pool.position == EMPTY).all())
