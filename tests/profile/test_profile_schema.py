"""Our JSON form: round trips, and refusals that name the place."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from profile_builders import profile_of, profiles

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.files import dumps, load_profile, save_profile
from hetero_sglang.profile.measurements import Measurements
from hetero_sglang.profile.schema import decode, encode


def measured(layers: int, heads: int, steps: int = 3) -> Measurements:
    rng = np.random.default_rng(4)
    pairs = rng.random((layers, heads, heads)).round(4)
    return Measurements(
        rng.random((layers, heads)).round(4),
        rng.random((layers, heads)).round(4),
        pairs,
        pairs / 2,
        rng.random((layers, heads, steps)).round(4),
    )


@given(profiles())
def test_a_profile_survives_the_text_of_its_file(profile):
    assert decode(json.loads(dumps(encode(profile)))) == profile


def test_measurements_and_provenance_survive_a_file(tmp_path):
    profile = profile_of("Psaa", "VVaa", provenance={"seed": 3, "texts": [{"tokens": 9}]}, measurements=measured(2, 4))
    save_profile(profile, tmp_path / "p.json")
    loaded = load_profile(tmp_path / "p.json")
    assert loaded == profile and loaded.provenance == profile.provenance
    for name in ("stability", "stability_spread", "similarity", "similarity_spread", "overlap"):
        np.testing.assert_allclose(getattr(loaded.measurements, name), getattr(profile.measurements, name), atol=5e-5)


def test_equal_profiles_make_equal_files(tmp_path):
    for name in "ab":
        save_profile(profile_of("Psaa", measurements=measured(1, 4)), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_documented_example_is_valid():
    page = (Path(__file__).parents[2] / "docs" / "profile.md").read_text(encoding="utf-8")
    example = page.split("```json\n")[1].split("```")[0]
    assert decode(json.loads(example)).num_resident == 2


def set_at(data: dict, path: tuple, value: object) -> None:
    for step in path[:-1]:
        data = data[step]
    data[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 2, "`version` is 2 and this release reads 1"),
        (("model",), None, "`model` is missing"),
        (("model", "num_layers"), 0, "`model.num_layers` is 0"),
        (("model", "num_kv_heads"), "4", "`model.num_kv_heads` is '4'"),
        (("model", "head_dim"), 1.5, "`model.head_dim` is 1.5"),
        (("roles",), {}, "`roles` is missing"),
        (("roles", 1), [], "layer 1: `roles` holds 0 heads"),
        (("weights",), [[0, 1, 1, 1]], "`weights` lists 1 layers and `model.num_layers` is 2"),
        (("roles", 0, 1), "leader", "layer 0: head 1 has role 'leader'; it must be one of pivot, satellite"),
        (("roles", 0, 1), ["pivot"], "layer 0: head 1 has role"),
        (("weights", 1, 2), "1", "layer 1: head 2 has weight '1'"),
        (("weights", 1, 2), True, "layer 1: head 2 has weight True"),
        (("weights", 1, 2), -1.0, "layer 1: head 2 .anchor. is compressed but has weight -1"),
        (("weights", 1, 2), 3.0, "compressed heads have mean 1.4"),
        (("pivots", 0, 1), 2, "layer 0: head 1 .satellite. names 2"),
        (("pivots", 0, 1), 0.0, "layer 0: head 1 has pivot 0.0; it must be a whole number"),
        (("provenance",), [], "`provenance` is list"),
        (("measurements",), [], "`measurements` is list"),
        (("measurements", "stability"), [[0.5] * 4], r"`measurements.stability` has shape \(1, 4\)"),
        (("measurements", "overlap"), "x", "`measurements.overlap` is missing or not a table"),
        (
            ("measurements", "similarity", 0, 0, 0),
            1.5,
            r"`measurements.similarity` holds a number outside \[0, 1\]",
        ),
        (("measurements", "stability", 0, 0), float("nan"), "outside"),
    ],
)
def test_a_wrong_field_is_refused_with_its_place(path, value, message):
    data = copy.deepcopy(encode(profile_of("Psaa", "VVaa", measurements=measured(2, 4))))
    decode(data)
    set_at(data, path, value)
    with pytest.raises(HeteroError, match=message):
        decode(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON: line 1"),
        (b"{\n,", "is not JSON: line 2"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[1]", "holds a list"),
        (b"{}", "`format` is not"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(HeteroError, match=message) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)
