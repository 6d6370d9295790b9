"""Running statistics against code that keeps everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.calibration.tracker import DocumentStatistics, Tracker, combine


def top(scores: np.ndarray, k: int) -> set[int]:
    return set(np.argsort(-scores, kind="stable")[:k].tolist())


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 8), st.sampled_from([1, 2, 5]))
def test_statistics_equal_medians_over_all_steps_kept(seed, steps, k, smoothing):
    layers, heads, length = 2, 3, 12
    rng = np.random.default_rng(seed)
    prefill = rng.random((layers, heads, length), dtype=np.float32)
    decode = rng.random((steps, layers, heads, length), dtype=np.float32)
    tracker = Tracker(layers, k, smoothing)
    for scores in (prefill, *decode):
        for layer in range(layers):
            tracker.add(layer, torch.from_numpy(scores[layer].copy()))
    found = tracker.finish()

    running = [decode[0].astype(np.float64)]
    for scores in decode[1:]:
        running.append(running[-1] + (scores - running[-1]) / smoothing)
    for layer in range(layers):
        sets = [[top(step[layer, head], k) for head in range(heads)] for step in running]
        for head in range(heads):
            first = top(prefill[layer, head], k)
            shared = [len(first & now[head]) / k for now in sets]
            np.testing.assert_allclose(found.overlap[layer, head], shared, atol=1e-6)
            assert found.stability[layer, head] == pytest.approx(np.median(shared))
            for other in range(heads):
                pair = [len(now[head] & now[other]) / k for now in sets]
                assert found.similarity[layer, head, other] == pytest.approx(np.median(pair))


def test_the_callers_scores_are_not_kept():
    tracker = Tracker(1, 10, smoothing=4)
    scores = [torch.rand(3, 50) for _ in range(8)]
    for step in scores:
        tracker.add(0, step.clone())
    expected = tracker.finish()
    again = Tracker(1, 10, smoothing=4)
    buffer = torch.empty(3, 50)
    for step in scores:
        again.add(0, buffer.copy_(step))
        buffer.fill_(float("nan"))  # poisoned after use
    np.testing.assert_array_equal(again.finish().overlap, expected.overlap)


def test_documents_are_combined_to_mean_and_standard_deviation():
    documents = [
        DocumentStatistics(np.full((1, 2), s), np.full((1, 2, 2), s / 2), np.full((1, 2, 3), s)) for s in (0.2, 0.6)
    ]
    found = combine(documents)
    assert found.stability == pytest.approx(0.4) and found.stability_spread == pytest.approx(0.2)
    assert found.similarity == pytest.approx(0.2) and found.similarity_spread == pytest.approx(0.1)
    assert found.overlap.shape == (1, 2, 3) and found.overlap == pytest.approx(0.4)
