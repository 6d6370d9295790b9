"""StreamingLLM keeps the latest tokens, whatever they are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive import DTYPES, HEADS, check_choice, fresh, picked_by

from hetero_sglang.policy.base import Refresh
from hetero_sglang.policy.streamingllm import StreamingLLM


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "group"), HEADS)
@pytest.mark.parametrize("length", [1, 7, 300])
def test_a_later_token_always_counts_more(dtype: torch.dtype, heads: int, group: int, length: int) -> None:
    q, k = fresh(1, heads, group, 8, dtype=dtype), fresh(length, heads, 8, dtype=dtype)
    scores = StreamingLLM().scores(q, k, 0.35)
    assert scores.shape == (heads, length) and scores.dtype == torch.float32
    assert bool((scores.diff(dim=1) > 0).all())


@given(st.lists(st.integers(0, 90), min_size=1, max_size=4), st.integers(0, 20), st.integers(0, 80))
def test_the_latest_within_the_limits_are_kept(counts: list[int], low: int, more: int) -> None:
    high = low + more
    q, k = torch.zeros(1, len(counts), 1, 4), torch.zeros(high + 5, len(counts), 4)
    policy = StreamingLLM()
    picked = picked_by(policy, policy.scores(q, k, 1.0), counts, low, high)
    check_choice(picked, counts, low, high)
    assert [p.tolist() for p in picked] == [list(range(max(low, high - n), high)) for n in counts]


def test_its_ring_is_all_that_is_not_a_sink() -> None:
    policy = StreamingLLM()
    assert policy.recent_only and policy.refresh is Refresh.NEVER and policy.index is None
