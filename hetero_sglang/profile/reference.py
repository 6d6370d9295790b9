"""The published HeteroCache head files (`Head_Analysis_*.json`), to and from a head profile."""

import re
from collections.abc import Mapping, Sequence
from reprlib import repr as shown  # a few words of a value of any size
from typing import Any

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.head_profile import NO_PIVOT, HeadProfile, LayerRoles
from hetero_sglang.profile.json_file import is_number, is_whole, naming
from hetero_sglang.profile.roles import Role

_ROLES = {role.value: role for role in Role} | {
    "Stable_Unique": Role.ANCHOR,
    "Decaying_Unique": Role.VOLATILE,
    "Similar_Leader": Role.PIVOT,
    "Similar_Member": Role.SATELLITE,
}
_CODES = {Role.ANCHOR: 1, Role.VOLATILE: 2, Role.PIVOT: 3, Role.SATELLITE: 4}
_KEYS = ("classification_matrix", "allocation_matrix", "leader_member_relations")
_FILE_NAME = re.compile(
    r"topk(?P<topk>\d+)_th(?P<tau_stable>\d+(?:\.\d+)?)_sim(?P<tau_sim>\d+(?:\.\d+)?)_step(?P<steps>\d+)"
)

MISSING = (
    "the number of query heads",
    "the head dimension",
    "stability and similarity of the heads",
    "the model's fingerprint",
    "the calibration texts",
)


def is_reference(data: Mapping[str, Any]) -> bool:
    """Whether a JSON object is one of the reference's files."""
    return "classification_matrix" in data


def decode_reference(data: Mapping[str, Any], file_name: str = "") -> HeadProfile:
    """The profile of a reference file; thresholds are read from `file_name` where it follows their pattern.

    Raises HeteroError naming the place that is wrong."""
    for key in _KEYS:
        if not isinstance(data.get(key), list):
            raise HeteroError(f"`{key}` is missing or not a list, so this is not a HeteroCache head file.")
    codes = _codes(data)
    tables = [data[key] for key in _KEYS]
    if len({len(table) for table in tables}) > 1:
        sizes = ", ".join(f"`{key}` {len(table)}" for key, table in zip(_KEYS, tables, strict=True))
        raise HeteroError(f"the layers listed are {sizes}; they must be as many.")
    layers = []
    for index, entries in enumerate(zip(*tables, strict=True)):
        with naming(f"layer {index}"):
            layers.append(_layer(codes, *entries))
    if not layers:
        raise HeteroError("`classification_matrix` lists no layers.")
    match = _FILE_NAME.search(file_name)
    found = match.groupdict() if match else {}
    thresholds = {name: (float if name.startswith("tau") else int)(text) for name, text in found.items()}
    provenance = {"imported_from": file_name or "HeteroCache head file", **thresholds, "lacks": list(MISSING)}
    profile = HeadProfile(len(layers), len(layers[0].roles), None, None, tuple(layers), provenance)
    _check_counts(data, profile)
    profile.check_weights()
    return profile


def encode_reference(profile: HeadProfile) -> dict[str, Any]:
    """The reference's JSON object, type names as in its Llama files."""
    return {
        "meta": {
            "type_map": {role.value: code for role, code in _CODES.items()},
            "counts": {role.value: profile.counts[role] for role in _CODES},
        },
        "classification_matrix": [[_CODES[role] for role in layer.roles] for layer in profile.layers],
        "allocation_matrix": [[w if w > 0.0 else -1.0 for w in layer.weights] for layer in profile.layers],
        "leader_member_relations": [
            {str(pivot): satellites for pivot, satellites in layer.clusters.items()} for layer in profile.layers
        ],
    }


def _codes(data: Mapping[str, Any]) -> dict[int, Role]:
    meta = data.get("meta")
    names = meta.get("type_map") if isinstance(meta, Mapping) else None
    if not isinstance(names, Mapping):
        raise HeteroError("`meta.type_map` is missing, so the head types have no names.")
    codes = {code: _role(name, "type_map") for name, code in names.items() if is_whole(code)}
    if len(codes) != len(names):
        raise HeteroError("`meta.type_map` must give every name a whole number of its own.")
    return codes


def _layer(codes: Mapping[int, Role], types: Any, weights: Any, clusters: Any) -> LayerRoles:
    if not (isinstance(types, list) and isinstance(weights, list) and isinstance(clusters, Mapping)):
        raise HeteroError("the three entries must be a list of types, a list of weights and an object of clusters.")
    if len(types) != len(weights):
        raise HeteroError(f"{len(types)} types and {len(weights)} weights are listed; every head needs one of each.")
    for head, code in enumerate(types):
        if not is_whole(code) or code not in codes:
            raise HeteroError(f"head {head} has type {shown(code)}, which `meta.type_map` does not name.")
        if not is_number(weights[head]):
            raise HeteroError(f"head {head} has weight {shown(weights[head])}; it must be a number.")
    roles = tuple(codes[code] for code in types)
    pivots = [h if role is Role.PIVOT else NO_PIVOT for h, role in enumerate(roles)]
    for leader, members in clusters.items():
        _join(roles, pivots, leader, members)
    kept = tuple(0.0 if role.resident else float(w) for role, w in zip(roles, weights, strict=True))
    return LayerRoles(roles, kept, tuple(pivots))


def _join(roles: Sequence[Role], pivots: list[int], leader: str, members: Any) -> None:
    if leader not in map(str, range(len(roles))) or not isinstance(members, list):
        raise HeteroError(f"the cluster {shown(leader)} must be a head index with a list of head indices.")
    for head in members:
        if not is_whole(head) or not 0 <= head < len(roles) or roles[head] is not Role.SATELLITE:
            raise HeteroError(
                f"the cluster of head {leader} lists {shown(head)}, which is not a satellite of this layer."
            )
        if pivots[head] != NO_PIVOT:
            raise HeteroError(f"head {head} is in the clusters of heads {pivots[head]} and {leader}; one must go.")
        pivots[head] = int(leader)


def _check_counts(data: Mapping[str, Any], profile: HeadProfile) -> None:
    written = data["meta"].get("counts")
    if not isinstance(written, Mapping):
        return
    for name, count in written.items():
        found = profile.counts[_role(name, "counts")]
        if not is_whole(count) or found != count:
            raise HeteroError(f"`meta.counts` says {shown(count)} {name} heads but the matrix holds {found}.")


def _role(name: str, table: str) -> Role:
    if name not in _ROLES:
        raise HeteroError(f"`meta.{table}` names {shown(name)}, which is none of {', '.join(_ROLES)}.")
    return _ROLES[name]
