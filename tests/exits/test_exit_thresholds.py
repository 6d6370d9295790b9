"""Calibrated thresholds reach the agreement on the tokens that they come from, at no more than full depth."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from exits_builders import exits
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.calibrate import GRID, HeldOut, Weights, calibrate
from hetero_sglang.exits.confidence import leaves
from hetero_sglang.exits.operating_point import OperatingPoint

NUM_LAYERS = 9


@st.composite
def held_outs(draw: st.DrawFn, most: int = 40, branches: int = 4) -> HeldOut:
    """Some confidences are equal, and some are 1."""
    layers = draw(st.lists(st.integers(1, NUM_LAYERS - 1), min_size=1, max_size=branches, unique=True))
    shape = (len(layers), draw(st.integers(1, most)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = draw(st.sampled_from([3, 50, 10**6]))
    confidence = (np.ceil(rng.random(shape) * steps) / steps).astype(np.float32).clip(1e-6, 1)
    agrees = rng.random(shape) < confidence ** draw(st.sampled_from([0.1, 0.5, 1.0]))
    losses = rng.normal(size=shape).astype(np.float32)
    return HeldOut(confidence, agrees, losses, np.zeros(shape[1], int), tuple(sorted(layers)), NUM_LAYERS)


def without_text(confidence: np.ndarray, agrees: np.ndarray, layers: tuple[int, ...]) -> HeldOut:
    """Where nobody asks for a loss."""
    losses, windows = np.zeros(confidence.shape, np.float32), np.zeros(confidence.shape[1], int)
    return HeldOut(confidence, agrees, losses, windows, layers, NUM_LAYERS)


def played(held_out: HeldOut, thresholds: tuple[float, ...]) -> tuple[float, float, list[float], float]:
    """Agreement, mean depth, shares and loss, token by token as a server goes."""
    count, tokens = len(held_out.layers), held_out.tokens
    right, depth, at, loss = 0, 0, [0] * (count + 1), 0.0
    for token in range(tokens):
        sure = torch.from_numpy(held_out.confidence[:, token])
        gone = [b for b in range(count) if bool(leaves(sure[b], thresholds[b]))]
        branch = gone[0] if gone else count
        at[branch] += 1
        right += bool(held_out.agrees[branch, token]) if gone else 1
        depth += held_out.layers[branch] if gone else NUM_LAYERS
        loss += float(held_out.losses[branch, token]) if gone else 0.0
    return right / tokens, depth / tokens, [each / tokens for each in at], loss / tokens


@settings(max_examples=60, deadline=None)
@given(held_outs(), st.sampled_from([GRID, (0.5,), (0.9, 0.99)]))
def test_each_row_reaches_its_agreement(held_out: HeldOut, grid: tuple[float, ...]) -> None:
    rows = calibrate(held_out, grid)
    assert [row.agreement for row in rows] == [*grid, 1.0]
    for row in rows:
        agreement, depth, share, loss = played(held_out, row.thresholds)
        assert agreement >= row.agreement - 1e-12
        assert row.depth == pytest.approx(depth) and depth <= NUM_LAYERS
        assert list(row.share) == pytest.approx(share)
        assert held_out.loss(row.thresholds) == pytest.approx(loss, abs=1e-6)
    assert rows[-1].never and rows[-1].depth == NUM_LAYERS


@settings(max_examples=60, deadline=None)
@given(held_outs(most=12, branches=1), st.sampled_from([0.5, 0.8, 0.9, 0.999]))
def test_one_branch_gets_the_best_threshold_there_is(held_out: HeldOut, agreement: float) -> None:
    row = calibrate(held_out, (agreement,))[0]
    possible = [*(float(min(c, np.nextafter(np.float32(1), np.float32(0)))) for c in held_out.confidence[0]), 1.0]
    depths = [depth for t in possible for right, depth, _, _ in [played(held_out, (t,))] if right >= agreement]
    assert row.depth == pytest.approx(min(depths))


def of_windows(rng: np.random.Generator, windows: int, size: int) -> HeldOut:
    """Of texts some of which are harder than others."""
    hard = np.repeat(rng.random(windows) < 0.3, size)
    confidence = rng.random((1, windows * size)).astype(np.float32).clip(0.01, 0.99)
    agrees = rng.random((1, windows * size)) < confidence ** np.where(hard, 0.5, 0.05)
    numbers = np.repeat(np.arange(windows), size)
    return HeldOut(confidence, agrees, np.zeros(confidence.shape, np.float32), numbers, (3,), NUM_LAYERS)


def test_other_texts_agree_as_often_as_was_asked() -> None:
    """In nineteen of twenty cases or more; without a margin in half of them."""
    rng = np.random.default_rng(1)
    reached = dict.fromkeys(("with", "without"), 0)
    for _ in range(60):
        read, other = of_windows(rng, 30, 100), of_windows(rng, 400, 100)
        for how, windows in (("with", read.windows), ("without", np.zeros(read.tokens, int))):
            [row] = calibrate(replace(read, windows=windows), (0.95,))[:-1]
            assert row.depth < NUM_LAYERS
            reached[how] += other.point(row.thresholds).agreement >= 0.95
    assert reached["with"] >= 54 and reached["without"] <= 42


def test_two_branches_share_the_disagreements_as_well_as_any_thresholds_do() -> None:
    rng = np.random.default_rng(3)
    skill = rng.random((1, 400)).astype(np.float32)
    confidence = np.clip(skill * [[0.8], [1.0]] + 0.1 * rng.random((2, 400)), 0.01, 0.99).astype(np.float32)
    agrees = rng.random((2, 400)) < confidence**0.3
    held_out = without_text(confidence, agrees, (3, 6))
    [row] = calibrate(held_out, (0.95,))[:-1]
    steps = [*np.linspace(0.02, 0.98, 49), 1.0]
    best = min(
        point.depth
        for pair in product(steps, steps)
        for point in [held_out.point(pair)]
        if point.agreement >= 0.95
    )  # fmt: skip
    assert row.depth <= best + 0.02 < NUM_LAYERS - 1


def read(held_out: HeldOut, thresholds: tuple[float, ...], weights: Weights) -> float:
    """By a token on the mean, played as above."""
    total, count = 0.0, len(held_out.layers)
    for token in range(held_out.tokens):
        for branch in range(count):
            if thresholds[branch] == 1.0:
                continue
            total += weights.branches[branch]
            if bool(leaves(torch.tensor(held_out.confidence[branch, token]), thresholds[branch])):
                total += held_out.layers[branch]
                break
        else:
            total += NUM_LAYERS + weights.head
    return total / held_out.tokens


@settings(max_examples=60, deadline=None)
@given(
    held_outs(most=12, branches=1), st.sampled_from([0.5, 0.8, 0.9]), st.floats(0, 4, width=16),
    st.floats(0, 9, width=16),
)  # fmt: skip
def test_one_branch_reads_as_little_as_any_threshold_lets_it(
    held_out: HeldOut, agreement: float, asked: float, head: float
) -> None:
    """Weights of the branch and of the model's head too, whose row is never worse than asking nobody."""
    weights = Weights((asked,), head)
    row = calibrate(held_out, (agreement,), weights)[0]
    possible = [*(float(min(c, np.nextafter(np.float32(1), np.float32(0)))) for c in held_out.confidence[0]), 1.0]
    every = [read(held_out, (t,), weights) for t in possible if played(held_out, (t,))[0] >= agreement]
    assert read(held_out, row.thresholds, weights) == pytest.approx(min(every))


@settings(max_examples=30, deadline=None)
@given(held_outs(), st.floats(0, 2, width=16), st.floats(0, 9, width=16))
def test_several_branches_never_read_more_than_none(held_out: HeldOut, asked: float, head: float) -> None:
    weights = Weights((asked,) * len(held_out.layers), head)
    for row in calibrate(held_out, (0.9, 0.99), weights):
        assert played(held_out, row.thresholds)[0] >= row.agreement - 1e-12
        assert read(held_out, row.thresholds, weights) <= NUM_LAYERS + head + 1e-9


def test_a_late_branch_pays_where_the_model_s_head_is_large() -> None:
    sure = np.full((2, 50), 0.5, np.float32)
    agrees = np.array([[False] * 50, [True] * 50])
    held_out = without_text(sure, agrees, (2, 8))
    dear = Weights((1.5, 1.5), 0.0)
    assert calibrate(held_out, (0.99,), dear)[0].never
    assert calibrate(held_out, (0.99,), Weights((1.5, 1.5), 3.0))[0].thresholds == (1.0, 0.5)


def test_branches_that_are_always_right_let_every_token_go_at_the_first() -> None:
    sure = np.array([[1.0, 1.0, 0.25], [1.0, 1.0, 1.0]], np.float32)
    row = calibrate(without_text(sure, np.ones((2, 3), bool), (2, 4)))[0]
    assert row.depth == 2 and row.share == (1.0, 0.0, 0.0) and row.thresholds[0] == 0.25


def test_branches_that_are_never_right_let_none_go() -> None:
    sure = np.ones((2, 50), np.float32)
    rows = calibrate(without_text(sure, np.zeros((2, 50), bool), (2, 4)), (0.99,))
    assert all(row.never for row in rows)


@given(st.floats(0, 1, exclude_min=True))
def test_an_agreement_gets_the_next_stricter_row(agreement: float) -> None:
    rows = [OperatingPoint(a, (t, t, t), 3.0, (1.0, 0.0, 0.0, 0.0)) for a, t in [(0.9, 0.5), (0.99, 0.7), (1.0, 1.0)]]
    found = exits(calibration=tuple(rows)).thresholds(agreement)
    assert found == (0.5 if agreement <= 0.9 else 0.7 if agreement <= 0.99 else 1.0,) * 3


@pytest.mark.parametrize("agreement", [0.0, -0.5, 1.0001, float("nan")])
def test_an_agreement_out_of_range_is_refused(agreement: float) -> None:
    with pytest.raises(HeteroError, match="choose one above 0 and at most 1"):
        exits().thresholds(agreement)


@pytest.mark.parametrize(
    ("confidence", "agrees", "said"),
    [
        (np.ones((1, 3)), np.ones((1, 3), bool), "are none of 2 branches"),
        (np.ones((2, 3)), np.ones((2, 4), bool), "are none of 2 branches"),
        (np.ones((2, 0)), np.ones((2, 0), bool), "are none of 2 branches"),
        (np.full((2, 3), np.nan), np.ones((2, 3), bool), r"outside \(0, 1\]"),
        (np.zeros((2, 3)), np.ones((2, 3), bool), r"outside \(0, 1\]"),
    ],
)
def test_tables_that_are_none_are_refused(confidence: np.ndarray, agrees: np.ndarray, said: str) -> None:
    with pytest.raises(HeteroError, match=said):
        without_text(confidence, agrees, (1, 2))
