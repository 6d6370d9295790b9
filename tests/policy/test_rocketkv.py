"""RocketKV against its rule: who is listed at prefill end, and how chunks are read at a step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive import DTYPES, HEADS, attended, best, check_choice, fresh, neighbours, picked_by, through_pool

from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.base import Refresh
from hetero_sglang.policy.rocketkv import RocketKV


def naive_stage_one(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    width, heads, group, _ = q.shape
    rows = []
    for head in range(heads):
        weights = [attended(q, k, scale, head, member, w) for member in range(group) for w in range(width)]
        total = [sum(column) for column in zip(*weights, strict=True)]
        rows.append([max(neighbours(total, token, 31)) for token in range(k.shape[0])])
    return torch.tensor(rows, dtype=torch.float64)


def naive_stage_two(queries: torch.Tensor, chunks: torch.Tensor) -> list[float]:
    """queries [G, D], chunks [U, 16, D]: each chunk's softmax share in half of the channels, mean over the group."""
    rows, dim = queries.tolist(), queries.shape[1]
    weight = [sum(abs(row[d]) for row in rows) for d in range(dim)]
    channels = sorted(range(dim), key=lambda d: -weight[d])[: dim // 2]
    edges = []
    for chunk in chunks.tolist():
        columns = list(zip(*chunk, strict=True))
        edges.append([max(columns[d]) if sum(row[d] for row in rows) >= 0 else min(columns[d]) for d in channels])
    mean = [0.0] * len(edges)
    for row in rows:
        held = sum(abs(row[d]) for d in channels) / sum(abs(x) for x in row)
        logits = [
            sum(row[d] * x for d, x in zip(channels, edge, strict=True)) / math.sqrt(dim * held) for edge in edges
        ]
        powers = [math.exp(logit - max(logits)) for logit in logits]
        mean = [m + p / sum(powers) / len(rows) for m, p in zip(mean, powers, strict=True)]
    return mean


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "group"), HEADS)
@pytest.mark.parametrize(("width", "length"), [(1, 1), (4, 4), (3, 40), (5, 130)])
def test_stage_one_follows_the_rule(dtype: torch.dtype, heads: int, group: int, width: int, length: int) -> None:
    q, k = fresh(width, heads, group, 8, dtype=dtype), fresh(length, heads, 8, dtype=dtype)
    got = RocketKV().scores(q, k, 0.35)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), naive_stage_one(q, k, 0.35), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "group"), HEADS)
@pytest.mark.parametrize("units", [1, 7])
def test_stage_two_follows_the_rule(dtype: torch.dtype, heads: int, group: int, units: int) -> None:
    """With attention's usual scale the temperature is the paper's."""
    keys, q = fresh(heads, units, 16, 12, dtype=dtype), fresh(heads, group, 12, dtype=dtype)
    index = RocketKV.index
    k_rows, v_rows = index.build(keys, 12)
    assert k_rows.shape == v_rows.shape == (heads, units, index.rows, 12) and k_rows.dtype == v_rows.dtype == dtype
    got = index.scores(q, *through_pool(k_rows, v_rows), 12**-0.5)
    assert got.shape == (heads, units * 16) and got.dtype == torch.float32
    for head in range(heads):
        wanted = [share for share in naive_stage_two(q[head], keys[head]) for _ in range(16)]
        assert got[head].exp().tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-7)


def test_shares_too_small_for_float32_keep_their_order() -> None:
    q = torch.full((1, 2, 4), 40.0)
    keys = torch.arange(5.0)[None, :, None, None].expand(1, 5, 16, 4)  # logits hundreds apart
    got = RocketKV.index.scores(q, *RocketKV.index.build(keys, 4), 1.0)[0, ::16]
    assert bool((got.diff() > 0).all()) and bool(got.isfinite().all())


def test_a_query_of_zeros_is_no_accident() -> None:
    got = RocketKV.index.scores(torch.zeros(1, 2, 8), *RocketKV.index.build(fresh(1, 4, 16, 8), 8), 0.35)
    assert got.exp().tolist() == [pytest.approx([0.25] * 64)]


@given(st.integers(1, 200), st.integers(0, 250), st.integers(0, 80), st.integers(1, 3), st.integers(1, 9), st.data())
def test_the_list_is_the_best_and_the_window(
    length: int, count: int, window: int, heads: int, levels: int, data: st.DataObject
) -> None:
    """Few levels: stage 1's pooling makes neighbours tie."""
    rows = [data.draw(st.lists(st.integers(1, levels), min_size=length, max_size=length)) for _ in range(heads)]
    policy = RocketKV()
    got = policy.candidates(torch.tensor(rows).float(), count, window)
    listed, chunks = got.shape[1], length // 16
    assert got.dtype == torch.int64 and got.shape[0] == heads
    assert 16 * listed == policy.max_candidates(length, count, window)
    assert listed == chunks or 16 * listed >= window
    recent = min(-(-window // 16), listed)
    for row, firsts in zip(rows, got.tolist(), strict=True):
        most = [max(row[16 * chunk : 16 * chunk + 16]) for chunk in range(chunks)]
        older = best(most, listed - recent, 0, chunks - recent)
        assert firsts == [16 * chunk for chunk in older + list(range(chunks - recent, chunks))]


@pytest.mark.parametrize(("length", "count"), [(1600, 100), (4096, 1024), (1000, 333)])
def test_both_stages_compress_alike(length: int, count: int) -> None:
    listed = RocketKV().max_candidates(length, count, 64)
    assert listed == pytest.approx(math.sqrt(count / length) * length, abs=16)
    assert listed <= math.sqrt(count / length) * length


def test_chunks_come_whole_and_the_unlisted_last() -> None:
    scores = torch.full((2, 100), float("-inf"))
    scores[:, 10:26], scores[:, 50:66] = 1.0, 2.0
    picked = picked_by(RocketKV(), scores, [20, 36], 4, 90)
    check_choice(picked, [20, 36], 4, 90)
    assert picked[0].tolist() == [*range(10, 14), *range(50, 66)]
    assert picked[1].tolist() == [*range(4, 8), *range(10, 26), *range(50, 66)]


def test_the_index_covers_the_list_and_what_is_generated() -> None:
    policy = RocketKV()
    assert policy.refresh is Refresh.STEP and policy.index_share == 1 / 16
    listed = policy.max_candidates(1000, int(0.25 * 1100), 64)
    assert policy.index_rows(1000, 1100, 0.25, 64) == -(-(listed + 100) // 16)
    with pytest.raises(HeteroError, match="8 and 4 wide"):
        policy.index.build(torch.zeros(1, 0, 16, 8), 4)
