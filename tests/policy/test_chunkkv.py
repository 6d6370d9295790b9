"""ChunkKV against its rule: one choice of runs for all heads of a layer."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive import DTYPES, HEADS, check_choice, fresh, picked_by
from test_snapkv import naive_scores

from hetero_sglang.policy.base import Refresh
from hetero_sglang.policy.chunkkv import ChunkKV


def naive_choice(scores: list[int], count: int, low: int, high: int, size: int) -> list[int]:
    """Chunks from `low` by their mean, the earlier of equals, each whole until the count is reached."""
    chunks = [list(range(start, min(start + size, high))) for start in range(low, high, size)]
    chunks.sort(key=lambda chunk: (-Fraction(sum(scores[t] for t in chunk), len(chunk)), chunk[0]))
    return sorted([token for chunk in chunks for token in chunk][:count])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "group"), HEADS)
@pytest.mark.parametrize(("width", "length"), [(1, 1), (1, 40), (6, 6), (9, 33)])
def test_scores_are_the_sum_of_all_heads(dtype: torch.dtype, heads: int, group: int, width: int, length: int) -> None:
    q, k = fresh(width, heads, group, 8, dtype=dtype), fresh(length, heads, 8, dtype=dtype)
    got = ChunkKV().scores(q, k, 0.35)
    assert got.shape == (heads, length) and got.dtype == torch.float32
    wanted = naive_scores(q, k, 0.35).sum(0)
    for row in got:
        torch.testing.assert_close(row.double(), wanted, atol=1e-6, rtol=1e-4)


@given(
    st.lists(st.integers(0, 999), min_size=1, max_size=90),
    st.lists(st.integers(0, 100), min_size=1, max_size=4),
    st.integers(1, 13),
    st.data(),
)
def test_whole_chunks_by_their_mean(scores: list[int], counts: list[int], size: int, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, len(scores) - 1))
    high = data.draw(st.integers(low, len(scores)))
    picked = picked_by(ChunkKV(size), torch.tensor(scores).float().expand(len(counts), -1), counts, low, high)
    check_choice(picked, counts, low, high)
    for positions, count in zip(picked, counts, strict=True):
        assert positions.tolist() == naive_choice(scores, count, low, high, size)


@given(st.integers(0, 10**6), st.integers(0, 60), st.integers(0, 60))
def test_heads_share_one_choice_whatever_their_budgets(seed: int, small: int, more: int) -> None:
    scores = torch.rand(80, generator=torch.Generator().manual_seed(seed)).expand(3, -1)
    one, same, larger = picked_by(ChunkKV(), scores, [small, small, small + more], 4, 75)
    assert one.tolist() == same.tolist()
    assert set(one.tolist()) <= set(larger.tolist()), "a larger budget must only add"


@pytest.mark.parametrize("count", [10, 25, 47])
def test_at_most_one_chunk_is_broken_and_from_its_end(count: int) -> None:
    (picked,) = picked_by(ChunkKV(), fresh(1, 100), [count], 3, 97)
    taken = set(picked.tolist())
    chunks = [range(start, min(start + 10, 97)) for start in range(3, 97, 10)]
    broken = [chunk for chunk in chunks if 0 < len(taken & set(chunk)) < len(chunk)]
    assert len(broken) <= 1
    for chunk in broken:
        assert taken & set(chunk) == set(chunk[: len(taken & set(chunk))])


def test_a_short_last_chunk_is_scored_by_its_own_tokens() -> None:
    scores = torch.ones(1, 24)
    scores[0, 20:] = 2.0  # four tokens: diluted by a full chunk's length they would lose
    (picked,) = picked_by(ChunkKV(), scores, [4], 0, 24)
    assert picked.tolist() == [20, 21, 22, 23]


def test_tokens_that_are_ruled_out_come_last() -> None:
    scores = torch.rand(2, 50)
    scores[:, 10:20] = float("-inf")
    for positions in picked_by(ChunkKV(), scores, [40, 45], 0, 50):
        assert len({*range(10, 20)} & set(positions.tolist())) == max(0, positions.numel() - 40)


def test_the_choice_is_made_once_from_no_index() -> None:
    assert ChunkKV.refresh is Refresh.NEVER and ChunkKV.index is None and ChunkKV().size == 10
