"""Heads planted in noise are told apart."""

from __future__ import annotations

import pytest
from profile_builders import PlantedLayer

from hetero_sglang.calibration.tracker import Tracker, combine
from hetero_sglang.profile.roles import Role
from hetero_sglang.profile.thresholds import Thresholds, classify


@pytest.mark.parametrize("heads", [8, 32, 64])
def test_planted_roles_are_recovered_for_every_seed(heads):
    for seed in range(50):
        planted = PlantedLayer(heads, seed)
        tracker = Tracker(1, PlantedLayer.TOPK)
        for _ in range(6):
            tracker.add(0, planted.step())
        (layer,) = classify(combine([tracker.finish()]), Thresholds())
        assert list(layer.roles) == planted.roles, f"seed {seed}"
        assert {p for p, r in zip(layer.pivots, layer.roles, strict=True) if r is Role.SATELLITE} == {planted.centre}
