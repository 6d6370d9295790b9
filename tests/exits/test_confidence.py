"""Confidence lies in (0, 1], and is what its name says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.confidence import MEASURES, leaves, measure

KINDS = sorted(MEASURES)
some_logits = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(2, 9)), elements=st.floats(-80, 80, width=32))


@given(some_logits, st.sampled_from(KINDS))
def test_it_lies_above_zero_and_at_most_at_one(logits: np.ndarray, kind: str) -> None:
    sure = measure(kind, torch.from_numpy(logits))
    assert sure.shape == logits.shape[:1] and sure.dtype == torch.float32
    assert (sure > 0).all() and (sure <= 1).all()


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=8))
def test_it_is_what_its_name_says(weights: list[float]) -> None:
    share = np.array(weights) / sum(weights)
    logits = torch.tensor(np.log(share), dtype=torch.float32)[None]
    first, second = sorted(share, reverse=True)[:2]
    entropy = -sum(p * math.log(p) for p in share) / math.log(len(share))
    expected = {"probability": first, "margin": first - second, "entropy": 1 - entropy}
    for kind in KINDS:
        assert measure(kind, logits).item() == pytest.approx(expected[kind], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [[0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf] * 3])
def test_logits_without_a_first_choice_are_refused_and_never_exit(kind: str, bad: list[float]) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], bad])
    with pytest.raises(HeteroError, match="no finite numbers"):
        measure(kind, logits)
    assert leaves(MEASURES[kind](logits), 1e-30).tolist() == [True, False]


def test_another_kind_is_refused() -> None:
    with pytest.raises(HeteroError, match="choose one of probability, margin, entropy"):
        measure("variance", torch.zeros(1, 2))


@given(st.floats(0, 1, width=32), st.floats(0, 1, exclude_min=True, exclude_max=True, width=32))
def test_a_token_leaves_at_its_threshold_and_never_at_one(sure: float, threshold: float) -> None:
    both = torch.tensor([sure, 1.0])
    assert leaves(both, threshold).tolist() == [sure >= threshold, True]
    assert leaves(both, 1.0).tolist() == [False, False]
