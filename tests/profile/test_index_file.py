"""A key index in a profile: round trips, slices, and refusals that name the place."""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from profile_builders import index_of, profile_of

from hetero_sglang.calibration.summary import summary
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile import files
from hetero_sglang.profile.files import load_profile, save_profile
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.index_plan import IndexPlan
from hetero_sglang.profile.schema import decode, encode

FIELDS = ((4, 4), (8, 2))
TABLES = ("encode", "offset", "decode")


def indexed(heads: int = 4, **changes: int) -> HeadProfile:
    return profile_of(
        "P" + "s" * (heads - 1), "V" * heads, head_dim=16, index=index_of(2, heads, 16, FIELDS, **changes)
    )


def same(one: IndexPlan, other: IndexPlan) -> bool:
    tables = all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in (*TABLES, "run", "every", "weight")
    )
    return tables and one.fields == other.fields


@pytest.mark.parametrize("run", [1, 4, (8, 1)])
def test_what_is_written_is_read_again(tmp_path, run):
    profile = indexed(run=run)
    every = np.array([[1, 2, 4, 0], [1, 1, 0, 4]])
    weight = np.array([[0.6, 2.0, 0.625, 0.775], [1, 1, 1, 1]])
    profile = replace(profile, index=replace(profile.index, every=every, weight=weight))
    save_profile(profile, tmp_path / "p.json")
    again = load_profile(tmp_path / "p.json")
    assert again == profile and same(again.index, profile.index)
    assert again.index.encode.dtype == np.float32
    lines = (tmp_path / "p.json").read_text().splitlines()
    assert sum(name in line for line in lines for name in ('"encode": "', '"offset": "', '"decode": "')) == 3


def test_a_profile_without_an_index_is_written_without_one(tmp_path):
    save_profile(profile_of("Psaa"), tmp_path / "p.json")
    assert "index" not in json.loads((tmp_path / "p.json").read_text())
    assert load_profile(tmp_path / "p.json").index is None


def test_the_index_is_no_part_of_equality():
    assert indexed(seed=1) == indexed(seed=2) and hash(indexed(seed=1)) == hash(indexed(seed=2))


def test_a_tensor_parallel_rank_has_the_index_of_its_heads():
    profile = indexed()
    parts = [profile.slice(rank, 2).index for rank in range(2)]
    for name in TABLES:
        joined = np.concatenate([getattr(part, name) for part in parts], axis=1)
        assert np.array_equal(joined, getattr(profile.index, name))
    alone = profile.slice(5, 8).index  # heads on two ranks each
    assert np.array_equal(alone.encode, profile.index.encode[:, 2:3]) and alone.fields == FIELDS


@pytest.mark.parametrize(("layers", "heads", "dim"), [(3, 4, 16), (2, 3, 16), (2, 4, 32)])
def test_an_index_of_another_shape_is_refused(layers, heads, dim):
    with pytest.raises(HeteroError, match=f"key index is of {layers} layers of {heads} KV heads of {dim} dim"):
        replace(indexed(), index=index_of(layers, heads, dim, FIELDS))


def test_an_index_without_a_head_dimension_is_refused():
    with pytest.raises(HeteroError, match="of 16 dimensions and the profile of 2, 4 and None"):
        replace(indexed(), head_dim=None)


def test_a_model_of_another_head_dimension_is_refused():
    with pytest.raises(HeteroError, match="16 dimensions per head, this model has 32"):
        indexed().check_model(2, 8, 4, 32)


def test_a_profile_too_large_to_be_read_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 4000)
    with pytest.raises(HeteroError, match="none with more than 4000 is read"):
        save_profile(indexed(), tmp_path / "p.json")
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("value", [1e6, -7e4])
def test_a_number_beyond_float16_is_not_written(name, value):
    profile = indexed()
    getattr(profile.index, name)[1, 2, ..., 3] = value
    with pytest.raises(HeteroError, match=f"layer 1 head 2: the index's {name} has .*beyond float16"):
        encode(profile)


def test_the_summary_tells_bits_bytes_and_share():
    said = summary(indexed(run=(4, 1)), (0.9,))
    assert "key index of 4 directions in 4 bits, 8 directions in 2 bits: 32 bits, 4 bytes a token and head" in said
    assert "32 bytes a token for all heads, 6.2% of its K and V in 16 bits, tokens in runs of 1/4" in said
    assert "no key index" in summary(profile_of("Psaa"), (0.5,))


def numbers(*values: float) -> str:
    return base64.b64encode(np.array(values, "<f2").tobytes()).decode()


BAD = [
    ({"index": []}, "`index` is list; it must be an object"),
    ({"index": "x"}, "`index` is str"),
    ({"index": {}}, "`index.fields` is None"),
    ({"fields": 3}, "`index.fields` is 3; it must list pairs"),
    ({"fields": []}, "`index.fields`: an index needs a direction"),
    ({"fields": [[4]]}, r"`index.fields` holds \[4\]"),
    ({"fields": [[4, 4.0]]}, "`index.fields` holds"),
    ({"fields": [[True, 4]]}, "`index.fields` holds"),
    ({"fields": [[4, 3]]}, "`index.fields`: an index of 4 directions in 3 bits is not possible"),
    ({"fields": [[2, 4]]}, "`index.fields`: an index of 2 directions in 4 bits"),
    ({"fields": [[-4, 4]]}, "`index.fields`: an index of -4 directions"),
    ({"fields": [[0, 4]]}, "`index.fields`: an index of 0 directions"),
    ({"fields": [[16, 1], [8, 2]]}, "lists 24 directions and `model.head_dim` is 16"),
    ({"fields": [[10**18, 4]]}, "directions and `model.head_dim` is 16"),
    ({"fields": [[4, 4]] * 17}, "`index.fields` is"),
    ({"fields": [[4, 4]]}, "`index.encode` holds 3072 bytes; it must hold 1024"),
    ({"run": 2}, "`index`: an index's run is 2; it must be one of 1, 4, 8"),
    ({"run": True}, "`index.run` is True"),
    ({"run": None}, "`index.run` is None"),
    ({"run": [1, 4, 8]}, "`index.run` is .* for each of 2 layers"),
    ({"run": [1, 10**30]}, "`index`: an index's run is 99; it must be one of"),
    ({"every": 1}, "`index.every` is 1; it must list heads for each of 2 layers"),
    ({"every": [[1, 2, 4, 0]]}, "`index.every` is .* for each of 2 layers"),
    ({"every": [[1, 2, 4, 0], [1, 1, 1]]}, "layer 1: `index.every` is .* a number of steps for each of the layer's 4"),
    ({"every": [[1, 2, 4, 0], [1, 1, 1, True]]}, "layer 1: `index.every`"),
    (
        {"every": [[1, 2, 4, 0], [1, 1, 1, 3]]},
        "`index`: a head cannot find rows in every 3 steps; it must be one",
    ),
    ({"every": [[1, 2, 4, 0], [-1, 1, 1, 1]]}, "a head cannot find rows in every -1 steps"),
    ({"every": [[1, 2, 4, 0], [10**30, 1, 1, 1]]}, "a head cannot find rows in every 99 steps"),
    ({"every": [[1, 2, 4, 0], [-(10**30), 1, 1, 1]]}, "a head cannot find rows"),
    ({"weight": [[1, 1, 1, 1], [1, 1, 1, "1"]]}, "layer 1: `index.weight` is .* a weight for each of the layer's 4"),
    ({"weight": [[1, 1, 1, 1], [1, 0, 1, 1]]}, "`index`: a head's weight is 0; it must be above 0"),
    ({"weight": [[1, 1, 1, 1], [1, -5, 1, 1]]}, "`index`: a head's weight is -1; it must be above 0"),
    ({"encode": None}, "`index.encode` is missing"),
    ({"encode": [1.0]}, "`index.encode` is missing"),
    ({"decode": "AA"}, "`index.decode` is not base64"),
    ({"decode": "A*=="}, "`index.decode` is not base64"),
    ({"decode": "\u00e9"}, "`index.decode` is not base64"),
    ({"decode": ""}, "`index.decode` holds 0 bytes; it must hold 3072"),
    ({"offset": numbers(*[0.0] * 95)}, "`index.offset` holds 190 bytes; it must hold 192"),
    ({"offset": numbers(*[0.0] * 13, float("nan"), *[0.0] * 82)}, "layer 0: `index.offset` of head 1 holds a number"),
    ({"offset": numbers(*[0.0] * 95, -float("inf"))}, "layer 1: `index.offset` of head 3 holds a number"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_a_bad_index_is_refused_by_its_place(change, words):
    data = copy.deepcopy(encode(indexed()))
    if "index" in change:
        data |= change
    else:
        data["index"] |= change
    with pytest.raises(HeteroError, match=words):
        decode(data)


def test_an_index_of_a_model_of_unknown_head_dimension_is_refused():
    data = encode(indexed())
    data["model"]["head_dim"] = None
    with pytest.raises(HeteroError, match="`index` is given but `model.head_dim` is not"):
        decode(data)
