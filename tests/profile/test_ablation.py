"""Profiles with one of HeteroCache's ideas left out, and roles decided for a keep ratio."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_builders import index_of, profile_of, profiles

from hetero_sglang.config.choices import ABLATIONS as NAMES
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.ablation import ABLATIONS, alike, layerwise, uniform, without_clusters
from hetero_sglang.profile.head_profile import NO_PIVOT, HeadProfile
from hetero_sglang.profile.measurements import Measurements
from hetero_sglang.profile.ratio import GRID
from hetero_sglang.profile.roles import Role
from hetero_sglang.profile.thresholds import Thresholds, classify
from hetero_sglang.sglang.asked import decide_for


def weights_of(profile: HeadProfile) -> list[float]:
    return [weight for layer in profile.layers for weight in layer.weights if weight]


def check_same_roles(made: HeadProfile, profile: HeadProfile) -> None:
    assert [(layer.roles, layer.pivots) for layer in made.layers] == [
        (layer.roles, layer.pivots) for layer in profile.layers
    ]
    assert made.floor == profile.floor and made.measurements is None


def check_mean_of_one(made: HeadProfile) -> None:
    compressed = sum(len(layer.compressed) for layer in made.layers)
    assert sum(weights_of(made)) == pytest.approx(compressed) and len(weights_of(made)) == compressed


def test_alike_compresses_every_head_alike() -> None:
    made = alike(3, 4, 8, 64)
    made.check_model(3, 8, 4, 64)
    assert made.floor == 0 and made.num_heads == 12
    for layer in made.layers:
        assert layer.roles == (Role.ANCHOR,) * 4 and layer.weights == (1.0,) * 4 and layer.pivots == (NO_PIVOT,) * 4


def test_alike_has_the_budgets_of_an_index() -> None:
    weight = np.array([[1.0, 3.0], [2.0, 2.0]])
    made = alike(2, 2, 4, 16, replace(index_of(2, 2, 16, ((8, 2),)), weight=weight))
    assert weights_of(made) == pytest.approx([0.5, 1.5, 1.0, 1.0])
    check_mean_of_one(made)


@given(profiles())
def test_uniform_keeps_roles_and_evens_out_budgets(profile: HeadProfile) -> None:
    made = uniform(profile)
    check_same_roles(made, profile)
    assert weights_of(made) == pytest.approx([1.0] * len(weights_of(profile)))


@given(profiles())
def test_layerwise_keeps_roles_and_what_each_layer_had(profile: HeadProfile) -> None:
    made = layerwise(profile)
    check_same_roles(made, profile)
    check_mean_of_one(made)
    for before, after in zip(profile.layers, made.layers, strict=True):
        given_ = [weight for weight in after.weights if weight]
        assert sum(given_) == pytest.approx(sum(before.weights))
        assert given_ == pytest.approx(given_[:1] * len(given_))


@given(profiles())
def test_without_clusters_only_volatile_heads_stay(profile: HeadProfile) -> None:
    made = without_clusters(profile)
    check_mean_of_one(made)
    volatile, ratios = 0, []
    for before, after in zip(profile.layers, made.layers, strict=True):
        assert after.pivots == (NO_PIVOT,) * len(before.roles)
        for role, now, weight, new in zip(before.roles, after.roles, before.weights, after.weights, strict=True):
            assert now is (Role.VOLATILE if role is Role.VOLATILE else Role.ANCHOR)
            volatile += role is Role.VOLATILE
            if role is not Role.VOLATILE:
                ratios.append(new / (weight or 1.0))  # a pivot had no weight: it gets the mean
    assert made.num_resident == volatile and made.measurements is None
    assert ratios == pytest.approx(ratios[:1] * len(ratios))


def test_leaving_clusters_out_lowers_the_floor() -> None:
    profile = profile_of("PssV", "aaVP")
    assert profile.floor == 0.5 and without_clusters(profile).floor == 0.25


def test_every_ablation_of_the_flag_is_there_and_none_changes_nothing() -> None:
    assert list(ABLATIONS) == NAMES
    profile = profile_of("PssV", "aaVP")
    assert ABLATIONS["none"](profile) is profile
    for name in ("uniform", "no-clusters", "layer-wise"):
        check_mean_of_one(ABLATIONS[name](profile))


def measured(seed: int, layers: int = 3, heads: int = 4, share: float = 0.2) -> HeadProfile:
    """Random measurements on sets of `share` of the tokens; asymmetric, as those of outputs are."""
    rng = np.random.default_rng(seed)
    similarity = rng.random((layers, heads, heads))
    similarity[:, range(heads), range(heads)] = 1
    tables = (rng.random((layers, heads)), np.zeros((layers, heads)), similarity, np.zeros_like(similarity))
    about = {"texts": [{"tokens": 1000, "topk": int(1000 * share)}]}
    found = Measurements(*tables, np.zeros((1, 1, 1)))
    return profile_of(*["a" * heads] * layers, provenance=about, measurements=found)


def loss_of(profile: HeadProfile, measurements: Measurements) -> float:
    """What compressed heads do not share: satellites with their pivots, anchors with themselves."""
    loss = 0.0
    for index, layer in enumerate(profile.layers):
        for head, (role, pivot) in enumerate(zip(layer.roles, layer.pivots, strict=True)):
            if role is Role.SATELLITE:
                loss += 1 - measurements.similarity[index, pivot, head]
            elif role is Role.ANCHOR:
                loss += 1 - measurements.stability[index, head]
    return loss


@settings(max_examples=12)
@given(st.integers(0, 2**31), st.floats(0.25, 0.99))
def test_roles_for_a_ratio_lose_least_of_those_that_fit(seed: int, ratio: float) -> None:
    profile = measured(seed)

    def fits(made: HeadProfile, slack: float) -> bool:
        return made.floor + 0.2 * (1 - made.floor) <= ratio + slack

    try:
        made = decide_for(profile, ratio)
    except HeteroError as refusal:
        assert f"keep ratio {ratio:g}" in str(refusal)
        made = None
    if made is not None:
        assert fits(made, 1e-9) and made.floor < ratio
        assert made.measurements is profile.measurements and made.provenance == profile.provenance
    rng = random.Random(seed)
    for _ in range(60):
        thresholds = Thresholds(rng.choice(GRID), rng.choice(GRID))
        other = replace(profile, layers=classify(profile.measurements, thresholds))
        if fits(other, -1e-9):
            assert made is not None, thresholds
            assert loss_of(made, profile.measurements) <= loss_of(other, profile.measurements) + 1e-9, thresholds


def test_more_bytes_lose_less() -> None:
    profile = measured(3)
    made = [decide_for(profile, ratio) for ratio in (0.5, 0.7, 0.9)]
    losses = [loss_of(each, profile.measurements) for each in made]
    assert losses[0] > losses[1] > losses[2]
    assert made[0].floor < made[1].floor < made[2].floor


def test_roles_cannot_be_decided_from_nothing() -> None:
    with pytest.raises(HeteroError, match=r"^--hetero-roles ratio decides.* has none: [^.]*\.$"):
        decide_for(profile_of("PssV"), 0.5)
    with pytest.raises(HeteroError, match="profile the model again"):
        decide_for(replace(measured(1), provenance={}), 0.5)
