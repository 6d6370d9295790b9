"""Base and caps at a keep ratio."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_builders import profile_of, profiles

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.budget import base_fraction, cap_fractions
from hetero_sglang.profile.files import load_profile
from hetero_sglang.profile.head_profile import HeadProfile


def flat(profile: HeadProfile) -> list[float]:
    return [layer.weights[h] for layer in profile.layers for h in layer.compressed]


def ratio_in(profile: HeadProfile, share: float) -> float:
    """A legal ratio: `share` of the way from the floor to 1."""
    return 1.0 if profile.floor == 1.0 else min(1.0, profile.floor + share * (1.0 - profile.floor))


@given(profiles(), st.floats(0.001, 1.0))
def test_caps_sum_to_what_the_keep_ratio_leaves_after_resident_heads(profile, share):
    ratio = ratio_in(profile, share)
    caps = cap_fractions(profile, ratio)
    assert [len(layer) for layer in caps] == [len(layer.compressed) for layer in profile.layers]
    total = math.fsum(cap for layer in caps for cap in layer)
    assert total == pytest.approx(ratio * profile.num_heads - profile.num_resident, abs=1e-9)
    assert all(0.0 < cap <= 1.0 for layer in caps for cap in layer)


@given(profiles(), st.floats(0.001, 1.0))
def test_heads_below_their_limit_share_in_proportion_to_weight_and_full_ones_deserve_it(profile, share):
    ratio = ratio_in(profile, share)
    caps = [cap for layer in cap_fractions(profile, ratio) for cap in layer]
    weights = flat(profile)
    rates = [cap / w for cap, w in zip(caps, weights, strict=True) if cap < 1.0]
    if rates:
        assert max(rates) == pytest.approx(min(rates))
        for cap, weight in zip(caps, weights, strict=True):
            if cap == 1.0:
                assert weight * rates[0] >= 1.0 - 1e-9


@given(profiles(), st.floats(0.001, 1.0))
def test_without_a_full_head_caps_are_base_times_weight(profile, share):
    ratio = ratio_in(profile, share)
    base = base_fraction(profile, ratio)
    weights = flat(profile)
    if all(base * w < 1.0 for w in weights):
        caps = [cap for layer in cap_fractions(profile, ratio) for cap in layer]
        assert caps == pytest.approx([base * w for w in weights])


@given(profiles())
def test_keep_ratio_one_keeps_everything(profile):
    assert {cap for layer in cap_fractions(profile, 1.0) for cap in layer} <= {1.0}
    assert base_fraction(profile, 1.0) == 1.0


@given(profiles(), st.floats(0.0, 1.0))
def test_ratios_at_or_below_the_floor_or_above_one_are_refused_with_the_floor(profile, share):
    for ratio in (profile.floor * share, 1.0 + 1e-6, math.nan, -0.1):
        if profile.floor == 1.0 and ratio == 1.0:
            continue
        message = f"{profile.num_resident} of {profile.num_heads} heads stay resident"
        with pytest.raises(HeteroError, match=message):
            base_fraction(profile, ratio)


def test_a_profile_without_compressed_heads_allows_only_one():
    profile = profile_of("PV", "VV")
    assert profile.floor == 1.0 and base_fraction(profile, 1.0) == 1.0
    assert cap_fractions(profile, 1.0) == ((), ())
    with pytest.raises(HeteroError, match="it can only be 1"):
        base_fraction(profile, 0.99)


@pytest.mark.parametrize(("ratio", "base"), [(0.5, 0.379), (0.25, 0.068), (0.2, 0.006)])
def test_published_llama_profile_gives_the_published_bases(published, ratio, base):
    assert base_fraction(load_profile(published["llama"]), ratio) == pytest.approx(base, abs=5e-4)
