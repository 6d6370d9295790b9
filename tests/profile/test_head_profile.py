"""Layers, slicing over tensor-parallel ranks, and the comparison with a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from profile_builders import ROLE_LETTERS, layer_of, profile_of, profiles

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.head_profile import HeadProfile, LayerRoles
from hetero_sglang.profile.roles import Role


def test_pivot_and_volatile_heads_are_resident():
    assert {role for role in Role if role.resident} == {Role.PIVOT, Role.VOLATILE}
    layer = layer_of("aVPs")
    assert (layer.resident, layer.compressed) == ((1, 2), (0, 3))


@pytest.mark.parametrize(
    ("roles", "weights", "pivots", "message"),
    [
        ("Ps", (0.5, 1.0), (0, 0), "head 0 .pivot. is resident but has weight 0.5"),
        ("Ps", (0.0, 0.0), (0, 0), "head 1 .satellite. is compressed but has weight 0;"),
        ("Va", (0.0, float("nan")), (-1, -1), "head 1 .anchor. is compressed but has weight nan"),
        ("Ps", (0.0, 1.0), (0, 1), "head 1 .satellite. names 1"),
        ("Ps", (0.0, 1.0), (0, 7), "head 1 .satellite. names 7"),
        ("PP", (0.0, 0.0), (0, 0), "head 1 .pivot. names 0"),
        ("Pa", (0.0, 1.0), (0, 0), "names 0 as its pivot; it must be -1"),
        ("Pa", (0.0,), (0, -1), "2 roles, 1 weights and 2 pivots"),
    ],
)
def test_a_layer_that_contradicts_itself_is_refused(roles, weights, pivots, message):
    with pytest.raises(HeteroError, match=message):
        LayerRoles(tuple(ROLE_LETTERS[r] for r in roles), weights, pivots)


def test_layers_must_be_as_many_and_as_wide_as_the_model_says():
    with pytest.raises(HeteroError, match="1 layers are listed for a model of 2"):
        HeadProfile(2, 2, None, None, (layer_of("Ps"),))
    with pytest.raises(HeteroError, match="layer 1 lists 3 heads"):
        HeadProfile(2, 2, None, None, (layer_of("Ps"), layer_of("Psa")))


@given(profiles(), st.data())
def test_slices_hold_every_head_once_in_order(profile, data):
    heads = profile.num_kv_heads
    size = data.draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    parts = [profile.slice(rank, size) for rank in range(size)]
    for index, layer in enumerate(profile.layers):
        resident = [r.resident for part in parts for r in part.layers[index].roles]
        assert resident == [r.resident for r in layer.roles]
        for rank, part in enumerate(parts):
            start = rank * heads // size
            here = part.layers[index]
            for local, (role, pivot) in enumerate(zip(here.roles, here.pivots, strict=True)):
                whole = layer.pivots[start + local]
                inside = start <= whole < start + heads // size
                was = layer.roles[start + local]
                assert pivot == (whole - start if inside else -1)
                assert role is (Role.ANCHOR if was is Role.SATELLITE and not inside else was)
    assert sum(part.num_resident for part in parts) == profile.num_resident


@given(profiles(), st.integers(2, 4), st.data())
def test_more_ranks_than_heads_replicate_each_head(profile, times, data):
    size = profile.num_kv_heads * times
    rank = data.draw(st.integers(0, size - 1))
    part = profile.slice(rank, size)
    assert part.num_kv_heads == 1
    for whole, local in zip(profile.layers, part.layers, strict=True):
        role = whole.roles[rank // times]
        assert local.roles == ((Role.ANCHOR if role is Role.SATELLITE else role),)


@given(profiles(), st.data())
def test_weights_of_a_slice_have_mean_one_and_keep_their_proportions(profile, data):
    heads = profile.num_kv_heads
    size = data.draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    part = profile.slice(0, size)
    weights = [w for layer in part.layers for w in layer.weights if w > 0]
    given = [w for layer in profile.layers for w in layer.weights[: heads // size] if w > 0]
    if weights:
        assert sum(weights) / len(weights) == pytest.approx(1.0)
        assert weights == pytest.approx([w * weights[0] / given[0] for w in given])


@pytest.mark.parametrize("size", [3, 6])
def test_a_size_that_leaves_a_remainder_is_refused(size):
    with pytest.raises(HeteroError, match=f"4 KV heads cannot be divided over {size}"):
        profile_of("Psaa").slice(0, size)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 8, 4, 64), "2 layers, this model has 3"),
        ((2, 16, 4, 64), "8 query heads, this model has 16"),
        ((2, 8, 8, 64), "4 KV heads, this model has 8"),
        ((2, 8, 4, 128), "64 dimensions per head, this model has 128"),
        ((3, 16, 8, 128), "2 layers"),
    ],
)
def test_another_model_is_refused_by_its_first_difference(shape, message):
    with pytest.raises(HeteroError, match=message):
        profile_of("Psaa", "VVaa").check_model(*shape)


def test_what_a_profile_does_not_know_is_not_compared():
    profile_of("Psaa", num_query_heads=None, head_dim=None).check_model(1, 99, 4, 77)
    profile_of("Psaa").check_model(1, 8, 4, 64)
