"""Roles from measurements: laws, planted roles, and thresholds chosen for a keep ratio."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sglang.calibration.role_options import frontier, frontier_table
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.clusters import star_clusters
from hetero_sglang.profile.head_profile import LayerRoles
from hetero_sglang.profile.measurements import Measurements
from hetero_sglang.profile.ratio import GRID, choices, choose
from hetero_sglang.profile.roles import Role
from hetero_sglang.profile.thresholds import Thresholds, classify

seeds = st.integers(0, 2**31)
BASE = 0.1


def random_measurements(seed: int, layers: int = 3, heads: int = 6) -> Measurements:
    rng = np.random.default_rng(seed)
    stability = rng.random((layers, heads))
    half = rng.random((layers, heads, heads))
    similarity = (half + half.transpose(0, 2, 1)) / 2
    return Measurements(stability, stability * 0, similarity, similarity * 0, stability[..., None])


def loss_of(measured: Measurements, layers: tuple[LayerRoles, ...]) -> float:
    """Naive: what every compressed head loses, averaged over all heads."""
    lost = []
    for index, layer in enumerate(layers):
        for head, role in enumerate(layer.roles):
            if role is Role.SATELLITE:
                lost.append(1 - measured.similarity[index, layer.pivots[head], head])
            elif role is Role.ANCHOR:
                lost.append(1 - measured.stability[index, head])
            else:
                lost.append(0.0)
    return float(np.mean(lost))


@given(seeds, st.sampled_from(GRID), st.sampled_from(GRID))
def test_clusters_decide_first_and_stability_decides_the_rest(seed, stable, similar):
    measured = random_measurements(seed)
    for index, layer in enumerate(classify(measured, Thresholds(stable, similar))):
        clusters = star_clusters(measured.similarity[index], similar)
        for head, role in enumerate(layer.roles):
            if head in clusters:
                assert role is Role.PIVOT
            elif any(head in members for members in clusters.values()):
                assert role is Role.SATELLITE and head in clusters[layer.pivots[head]]
            else:
                assert role is (Role.ANCHOR if measured.stability[index, head] >= stable else Role.VOLATILE)


@given(seeds, st.sampled_from(GRID), st.sampled_from(GRID))
def test_weights_are_inverse_to_stability_over_the_whole_model(seed, stable, similar):
    measured = random_measurements(seed)
    layers = classify(measured, Thresholds(stable, similar))
    pairs = [
        (w, max(0.01, measured.stability[i, h]))
        for i, layer in enumerate(layers)
        for h, w in enumerate(layer.weights)
        if not layer.roles[h].resident
    ]
    if pairs:
        weights, stabilities = np.array(pairs).T
        assert weights.mean() == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_allclose(weights * stabilities, (weights * stabilities).mean(), rtol=1e-3)


@settings(max_examples=15)
@given(seeds)
def test_every_choice_is_what_its_thresholds_give(seed):
    measured = random_measurements(seed)
    options = choices(measured, BASE)
    for option in options[:: max(1, len(options) // 25)]:
        layers = classify(measured, option.thresholds)
        assert option.resident == sum(len(layer.resident) for layer in layers)
        assert option.loss == pytest.approx(loss_of(measured, layers))


@settings(max_examples=10)
@given(seeds, st.floats(0.1, 0.99))
def test_the_choice_for_a_ratio_has_the_least_loss_of_all_grid_thresholds_that_allow_it(seed, ratio):
    measured = random_measurements(seed, layers=2, heads=4)
    allowed = []
    for similar in GRID[::7]:
        for stable in GRID[::7]:
            layers = classify(measured, Thresholds(stable, similar))
            resident = sum(len(layer.resident) for layer in layers)
            if ratio * 8 - resident >= BASE * (8 - resident):
                allowed.append(loss_of(measured, layers))
    options = choices(measured, BASE)
    if allowed:
        taken = choose(options, ratio)
        assert taken.floor < ratio and taken.loss <= min(allowed) + 1e-9
    least = min(option.least_keep_ratio for option in options)
    if least > 0.01:
        with pytest.raises(HeteroError, match=f"choose at least {least:.3f}"):
            choose(options, least - 0.01)


@settings(max_examples=10)
@given(seeds)
def test_along_the_frontier_more_resident_heads_always_lose_less(seed):
    options = choices(random_measurements(seed), BASE)
    best = frontier(options)
    assert all(a.resident < b.resident and a.loss > b.loss for a, b in zip(best, best[1:], strict=False))
    assert min(o.loss for o in options) == best[-1].loss
    assert frontier_table(options, best[0]).count("<- taken") == 1


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_thresholds_outside_the_open_interval_are_refused(value):
    with pytest.raises(HeteroError, match="--tau-stable"):
        Thresholds(stable=value)
    with pytest.raises(HeteroError, match="--tau-sim"):
        Thresholds(similar=value)
