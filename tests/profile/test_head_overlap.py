"""Window attention, pooling, GQA reduction and overlap against naive code, and their laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.calibration.observe import Observation, reduce_group, window_attention
from hetero_sglang.calibration.tracker import overlap, pairwise_overlap, top_mask
from hetero_sglang.ops.reference.attention import POOL, pool_average
from hetero_sglang.selection.scores import attention_scores

seeds = st.integers(0, 2**31)


def scores_of(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


@given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(0, 20))
def test_window_attention_is_a_causal_softmax_averaged_over_the_window(seed, heads, group, window, before):
    rng = np.random.default_rng(seed)
    length, dim = before + window, 4
    query = rng.normal(size=(heads * group, window, dim)).astype(np.float32)
    key = rng.normal(size=(heads, length, dim)).astype(np.float32)
    found = window_attention(torch.from_numpy(query), torch.from_numpy(key), 0.3)
    wanted = np.zeros((heads, group, length))
    for q in range(heads * group):
        for row in range(window):
            seen = before + row + 1
            logits = key[q // group, :seen].astype(np.float64) @ query[q, row] * 0.3
            weights = np.exp(logits - logits.max())
            wanted[q // group, q % group, :seen] += weights / weights.sum() / window
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


@given(seeds, st.integers(1, 30), st.sampled_from([1, 3, 5, 7]))
def test_pooling_is_the_servers_and_averages_at_the_ends_over_the_neighbours_there_are(seed, length, width):
    scores = scores_of(seed, 2, 3, length)
    near = [slice(max(0, i - width // 2), i + width // 2 + 1) for i in range(length)]
    wanted = np.stack([scores.numpy()[..., s].mean(-1) for s in near], axis=-1)
    np.testing.assert_allclose(pool_average(scores, width).numpy(), wanted, rtol=1e-5)


@given(seeds, st.integers(1, 4), st.integers(2, 3), st.integers(5, 20))
def test_calibration_scores_equal_the_servers_for_one_query(seed, heads, group, length):
    """With one query and the maximum over the group nothing but the pooling is left to differ in."""
    rng = np.random.default_rng(seed)
    query = torch.from_numpy(rng.normal(size=(heads * group, 1, 4)).astype(np.float32))
    key = torch.from_numpy(rng.normal(size=(heads, length, 4)).astype(np.float32))
    served = attention_scores(query.view(heads, group, 1, 4).permute(2, 0, 1, 3), key.transpose(0, 1), 0.5)
    found = Observation(window=1, pooling=POOL, reduction="max").score(query, key, 0.5, length)
    torch.testing.assert_close(found, served)


@given(seeds, st.integers(1, 4), st.integers(1, 4))
def test_group_reduction_is_the_mean_or_the_maximum_over_query_heads(seed, heads, group):
    scores = scores_of(seed, heads, group, 9)
    np.testing.assert_allclose(reduce_group(scores, "mean").numpy(), scores.numpy().mean(1), rtol=1e-5)
    np.testing.assert_array_equal(reduce_group(scores, "max").numpy(), scores.numpy().max(1))


@given(seeds, st.integers(1, 40), st.data())
def test_top_mask_marks_exactly_k_and_none_smaller_than_those_left(seed, length, data):
    k = data.draw(st.integers(1, length))
    scores = scores_of(seed, 3, length)
    mask = top_mask(scores, k)
    assert (mask.sum(-1) == k).all()
    for row, marked in zip(scores, mask, strict=True):
        if k < length:
            assert row[marked].min() >= row[~marked].max()


@given(seeds, st.integers(1, 30), st.floats(0, 1), st.floats(0, 1))
def test_overlap_is_shared_over_smaller_set_symmetric_and_bounded(seed, length, dense, other_dense):
    rng = np.random.default_rng(seed)
    a, b = rng.random(length) < dense, rng.random(length) < other_dense
    one, other = torch.from_numpy(a), torch.from_numpy(b)
    smaller = min(a.sum(), b.sum())
    wanted = len(set(np.flatnonzero(a)) & set(np.flatnonzero(b))) / smaller if smaller else 0.0
    assert overlap(one, other).item() == pytest.approx(wanted)
    assert overlap(one, other) == overlap(other, one)
    assert 0.0 <= overlap(one, other) <= 1.0


@given(seeds, st.integers(1, 6), st.integers(2, 30), st.data())
def test_pairwise_overlap_equals_overlap_of_each_pair_in_any_head_order(seed, heads, length, data):
    masks = top_mask(scores_of(seed, heads, length), data.draw(st.integers(1, length)))
    found = pairwise_overlap(masks)
    for i in range(heads):
        assert found[i, i] == 1.0
        for j in range(heads):
            assert found[i, j].item() == pytest.approx(overlap(masks[i], masks[j]).item())
    order = torch.tensor(data.draw(st.permutations(range(heads))))
    torch.testing.assert_close(pairwise_overlap(masks[order]), found[order][:, order])
