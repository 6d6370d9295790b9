"""An adapter's profile over the model's: its shares of rows, the model's roles, or a sentence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from profile_builders import index_of, profile_of

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.adapter import with_index_shares_of, with_shares_of
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.measurements import Measurements

MODEL = profile_of("Pssa", "aVaa")


def measured(profile: HeadProfile, stability: list[list[float]]) -> HeadProfile:
    table = np.array(stability)
    pairs = np.zeros((*table.shape, table.shape[1]))
    return replace(profile, measurements=Measurements(table, table, pairs, pairs, table[..., None]))


def test_measurements_say_what_the_model_s_compressed_heads_get() -> None:
    """Whatever roles the adapter itself would have."""
    own = measured(profile_of("VVaa", "VPss"), [[0.5, 0.25, 0.5, 1.0], [0.2, 0.1, 0.5, 0.25]])
    made = with_shares_of(own, MODEL)
    assert [(a.roles, a.pivots) for a in made.layers] == [(b.roles, b.pivots) for b in MODEL.layers]
    inverse = np.array([[0, 4, 2, 1], [5, 0, 2, 4]])
    assert np.array([layer.weights for layer in made.layers]) == pytest.approx(inverse * 6 / inverse.sum())
    made.check_weights()


def test_without_measurements_the_same_resident_heads_are_needed() -> None:
    same = profile_of("Vaaa", "aVaa")
    weights = [(0.0, 2.0, 1.0, 1.0), (0.5, 0.0, 0.5, 1.0)]
    layers = tuple(replace(layer, weights=each) for layer, each in zip(same.layers, weights, strict=True))
    assert [layer.weights for layer in with_shares_of(replace(same, layers=layers), MODEL).layers] == weights
    with pytest.raises(HeteroError, match="it makes 3 other heads resident than the model's"):
        with_shares_of(profile_of("aVaV", "aVaa"), MODEL)


def test_of_an_index_the_weights_are_read_and_the_model_s_directions_stay() -> None:
    fields = ((16, 1),)
    model = replace(MODEL, index=index_of(2, 4, 64, fields, seed=1))
    own = index_of(2, 4, 64, fields, run=4, seed=2)
    table = np.arange(1.0, 9.0).reshape(2, 4)
    made = with_index_shares_of(replace(MODEL, index=replace(own, weight=table)), model)
    assert made.num_resident == 0 and made.index is not None and model.index is not None
    assert (made.index.encode == model.index.encode).all() and (made.index.run == 1).all()
    assert np.array([layer.weights for layer in made.layers]) == pytest.approx(table / table.mean())
    with pytest.raises(HeteroError, match="it has no key index"):
        with_index_shares_of(MODEL, model)
