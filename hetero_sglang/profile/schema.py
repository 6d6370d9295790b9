"""Our JSON form of a head profile, version 1 (fields: docs/profile.md)."""

from collections.abc import Mapping, Sequence
from reprlib import repr as shown  # a few words of a value of any size
from typing import Any

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile import index_file
from hetero_sglang.profile.head_profile import HeadProfile, LayerRoles
from hetero_sglang.profile.json_file import is_number, is_whole, naming
from hetero_sglang.profile.measurements import Measurements
from hetero_sglang.profile.roles import Role

FORMAT = "hetero-sglang head profile"
VERSION = 1
_SIZES = ("num_layers", "num_kv_heads", "num_query_heads", "head_dim")
_ROLES = [role.value for role in Role]


def encode(profile: HeadProfile) -> dict[str, Any]:
    """The JSON object of a profile; resident weights are written as 0."""
    data: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "model": {name: getattr(profile, name) for name in _SIZES},
        "roles": [[role.value for role in layer.roles] for layer in profile.layers],
        "weights": [list(layer.weights) for layer in profile.layers],
        "pivots": [list(layer.pivots) for layer in profile.layers],
        "provenance": dict(profile.provenance),
    }
    if profile.measurements is not None:
        data["measurements"] = profile.measurements.encode()
    if profile.index is not None:
        data["index"] = index_file.encode(profile.index)
    return data


def decode(data: Mapping[str, Any]) -> HeadProfile:
    """The profile of a JSON object. Raises HeteroError naming the place that is wrong."""
    version = data.get("version")
    if not is_whole(version) or version != VERSION:
        raise HeteroError(f"`version` is {shown(version)} and this release reads {VERSION}; profile the model again.")
    model = data.get("model")
    if not isinstance(model, Mapping):
        raise HeteroError(f"`model` is missing; it must hold {', '.join(_SIZES)}.")
    num_layers, num_kv_heads = (_size(model, name) for name in _SIZES[:2])
    query_heads, head_dim = (None if model.get(name) is None else _size(model, name) for name in _SIZES[2:])
    tables = [_table(data, name, num_layers, num_kv_heads) for name in ("roles", "weights", "pivots")]
    layers = []
    for index, (roles, weights, pivots) in enumerate(zip(*tables, strict=True)):
        with naming(f"layer {index}"):
            layers.append(LayerRoles(
                tuple(_role(head, name) for head, name in enumerate(roles)),
                tuple(_number(head, "weight", w, float) for head, w in enumerate(weights)),
                tuple(_number(head, "pivot", p, int) for head, p in enumerate(pivots)),
            ))  # fmt: skip
    provenance = data.get("provenance", {})
    if not isinstance(provenance, Mapping):
        raise HeteroError(f"`provenance` is {type(provenance).__name__}; it must be an object.")
    measured = data.get("measurements")
    measurements = None if measured is None else Measurements.decode(measured, num_layers, num_kv_heads)
    table = data.get("index")
    plan = None if table is None else index_file.decode(table, num_layers, num_kv_heads, head_dim)
    profile = HeadProfile(
        num_layers, num_kv_heads, query_heads, head_dim, tuple(layers), provenance, measurements, plan
    )
    profile.check_weights()
    return profile


def _size(model: Mapping[str, Any], name: str) -> int:
    value = model.get(name)
    if not is_whole(value) or value < 1:
        raise HeteroError(f"`model.{name}` is {shown(value)}; it must be a positive whole number.")
    return value


def _table(data: Mapping[str, Any], name: str, rows: int, columns: int) -> Sequence[Sequence[Any]]:
    table = data.get(name)
    if not isinstance(table, list):
        raise HeteroError(f"`{name}` is missing; it must list {rows} layers of {columns} heads.")
    if len(table) != rows:
        raise HeteroError(f"`{name}` lists {len(table)} layers and `model.num_layers` is {rows}.")
    for index, row in enumerate(table):
        if not isinstance(row, list) or len(row) != columns:
            found = f"{len(row)} heads" if isinstance(row, list) else f"a {type(row).__name__}"
            raise HeteroError(f"layer {index}: `{name}` holds {found}; it must list {columns} heads.")
    return table


def _role(head: int, name: Any) -> Role:
    if name not in _ROLES:
        raise HeteroError(f"head {head} has role {shown(name)}; it must be one of {', '.join(_ROLES)}.")
    return Role(name)


def _number(head: int, noun: str, value: Any, kind: type) -> Any:
    if not (is_number(value) if kind is float else is_whole(value)):
        wanted = "number" if kind is float else "whole number"
        raise HeteroError(f"head {head} has {noun} {shown(value)}; it must be a {wanted}.")
    return kind(value)
