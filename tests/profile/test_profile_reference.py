"""The reference's head files, in and out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from profile_builders import profile_of, profiles

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.files import load_profile
from hetero_sglang.profile.reference import decode_reference, encode_reference
from hetero_sglang.profile.roles import Role

COUNTS = {  # anchor, volatile, pivot, satellite as published
    "llama": (10, 17, 33, 196),
    "deepseek": (0, 5, 32, 219),
    "qwen2.5": (37, 25, 55, 267),
}


@pytest.mark.parametrize("model", COUNTS)
def test_published_counts_and_unit_mean_weights_are_recovered(published, model):
    profile = load_profile(published[model])
    roles = [role for layer in profile.layers for role in layer.roles]
    assert tuple(roles.count(r) for r in (Role.ANCHOR, Role.VOLATILE, Role.PIVOT, Role.SATELLITE)) == COUNTS[model]
    weights = [w for layer in profile.layers for w in layer.weights if w > 0]
    assert len(weights) == profile.num_heads - profile.num_resident
    assert sum(weights) / len(weights) == pytest.approx(1.0, abs=1e-9)
    assert "the head dimension" in profile.provenance["lacks"]


def test_thresholds_are_read_from_the_published_name(published):
    about = load_profile(published["qwen2.5"]).provenance
    assert (about["topk"], about["tau_stable"], about["tau_sim"], about["steps"]) == (1024, 0.4, 0.5, 5000)


@pytest.mark.parametrize("model", COUNTS)
def test_export_of_an_import_says_the_same_to_the_reference(published, model):
    original = json.loads(published[model].read_text())
    exported = encode_reference(load_profile(published[model]))
    assert exported["classification_matrix"] == original["classification_matrix"]
    assert exported["allocation_matrix"] == original["allocation_matrix"]
    assert exported["leader_member_relations"] == original["leader_member_relations"]


@given(profiles())
def test_roles_weights_and_clusters_survive_their_form(profile):
    assert decode_reference(json.loads(json.dumps(encode_reference(profile)))).layers == profile.layers


def change(data: dict, **fields: object) -> dict:
    return {**data, **fields}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"allocation_matrix": None}, "`allocation_matrix` is missing"),
        ({"meta": {}}, "`meta.type_map` is missing"),
        ({"meta": {"type_map": {"leader": 3}}}, "names 'leader'"),
        ({"meta": {"type_map": {"anchor": 1, "volatile": 1}}}, "a whole number of its own"),
        ({"classification_matrix": [[9, 4, 1, 1]]}, "layer 0: head 0 has type 9"),
        ({"classification_matrix": []}, "`classification_matrix` 0, `allocation_matrix` 1"),
        ({"allocation_matrix": [[-1.0, 1.0]]}, "layer 0: 4 types and 2 weights"),
        ({"allocation_matrix": [[-1.0, "x", 1, 1]]}, "layer 0: head 1 has weight 'x'"),
        ({"leader_member_relations": [{}]}, "layer 0: head 1 .satellite. names -1"),
        ({"leader_member_relations": [{"0": [1, 2]}]}, "layer 0: the cluster of head 0 lists 2"),
        ({"leader_member_relations": [{"0": [1, 1]}]}, "layer 0: head 1 is in the clusters of heads 0 and 0"),
        ({"leader_member_relations": [{"x": [1]}]}, "layer 0: the cluster 'x'"),
        ({"leader_member_relations": [[]]}, "layer 0: the three entries"),
    ],
)
def test_a_wrong_entry_is_refused_with_its_place(fields, message):
    data = encode_reference(profile_of("Psaa"))
    decode_reference(data)
    with pytest.raises(HeteroError, match=message):
        decode_reference(change(data, **fields))


def test_counts_that_contradict_the_matrix_are_refused():
    data = encode_reference(profile_of("Psaa"))
    data["meta"]["counts"]["anchor"] = 3
    with pytest.raises(HeteroError, match="says 3 anchor heads but the matrix holds 2"):
        decode_reference(data)
