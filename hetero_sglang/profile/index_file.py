"""A key index as it stands in a head profile's file: small numbers as text, tables as base64 of float16."""

import base64
from collections.abc import Callable, Mapping
from math import prod
from reprlib import repr as shown
from typing import Any

import numpy as np

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.index_plan import Fields, IndexPlan, check_fields, directions_of, half
from hetero_sglang.profile.json_file import is_number, is_whole, naming

_NUMBER = np.dtype("<f2")
_TABLES = ("encode", "offset", "decode")


def encode(plan: IndexPlan) -> dict[str, Any]:
    """The JSON object. Raises HeteroError naming the head with a number beyond float16."""
    tables = {name: half(getattr(plan, name), f"the index's {name}").astype(_NUMBER) for name in _TABLES}
    texts = {name: base64.b64encode(table.tobytes()).decode("ascii") for name, table in tables.items()}
    fields = [list(field) for field in plan.fields]
    weight = np.round(plan.weight, 3).tolist()
    return {"fields": fields, "run": plan.run.tolist(), "every": plan.every.tolist(), "weight": weight, **texts}


def decode(data: Any, num_layers: int, num_kv_heads: int, head_dim: int | None) -> IndexPlan:
    """Raises HeteroError naming the place that is wrong."""
    if not isinstance(data, Mapping):
        raise HeteroError(f"`index` is {type(data).__name__}; it must be an object or be left out.")
    if head_dim is None:
        raise HeteroError("`index` is given but `model.head_dim` is not; its tables cannot be read without it.")
    fields = _fields(data.get("fields"), head_dim)
    run = _run(data.get("run"), num_layers)
    heads, directions = (num_layers, num_kv_heads), directions_of(fields)
    shapes = {name: (*heads, directions) if name == "offset" else (*heads, head_dim, directions) for name in _TABLES}
    tables = {name: _table(data.get(name), name, shape) for name, shape in shapes.items()}
    every = _heads(data, "every", *heads, is_whole, "a number of steps")
    weight = _heads(data, "weight", *heads, is_number, "a weight")
    with naming("`index`"):
        return IndexPlan(fields, run=run, every=every, weight=weight, **tables)


def text_bytes(num_layers: int, num_kv_heads: int, head_dim: int, fields: Fields) -> int:
    """Bytes of the tables in a file, about."""
    return num_layers * num_kv_heads * (2 * head_dim + 1) * directions_of(fields) * _NUMBER.itemsize * 4 // 3


def _run(value: Any, num_layers: int) -> np.ndarray:
    """[layers]; one number stands for all."""
    runs = [value] * num_layers if is_whole(value) else value
    if not isinstance(runs, list) or len(runs) != num_layers or not all(map(is_whole, runs)):
        raise HeteroError(
            f"`index.run` is {shown(value)}; it must list a number of tokens for each of {num_layers} layers."
        )
    return np.array([max(-1, min(run, 99)) for run in runs], np.int32)


def _heads(
    data: Mapping[str, Any], name: str, num_layers: int, num_kv_heads: int, is_one: Callable[[Any], bool], noun: str
) -> np.ndarray:
    """[layers, H] numbers; in a profile that does not say, 1 for every head."""
    value = data.get(name, [[1] * num_kv_heads] * num_layers)
    if not isinstance(value, list) or len(value) != num_layers:
        raise HeteroError(f"`index.{name}` is {shown(value)}; it must list heads for each of {num_layers} layers.")
    for layer, heads in enumerate(value):
        if not isinstance(heads, list) or len(heads) != num_kv_heads or not all(map(is_one, heads)):
            raise HeteroError(
                f"layer {layer}: `index.{name}` is {shown(heads)}; it must list {noun} for each of the layer's "
                f"{num_kv_heads} KV heads."
            )
    return np.array([[max(-1, min(number, 99)) for number in heads] for heads in value])


def _fields(value: Any, head_dim: int) -> Fields:
    if not isinstance(value, list) or len(value) > head_dim:
        raise HeteroError(f"`index.fields` is {shown(value)}; it must list pairs of directions and bits.")
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(is_whole, pair)):
            raise HeteroError(f"`index.fields` holds {shown(pair)}; it must list pairs of directions and bits.")
    fields = tuple((count, bits) for count, bits in value)
    with naming("`index.fields`"):
        check_fields(fields)
    if (directions := directions_of(fields)) > head_dim:
        raise HeteroError(f"`index.fields` lists {directions} directions and `model.head_dim` is {head_dim}.")
    return fields


def _table(text: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(text, str):
        raise HeteroError(f"`index.{name}` is missing; it must be base64 text of float16 numbers.")
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise HeteroError(f"`index.{name}` is not base64 ({str(error).rstrip('.')}).") from None
    if len(raw) != (wanted := _NUMBER.itemsize * prod(shape)):
        raise HeteroError(f"`index.{name}` holds {len(raw)} bytes; it must hold {wanted}, {shape} numbers of 16 bits.")
    values = np.frombuffer(raw, _NUMBER).reshape(shape).astype(np.float32)
    if not np.isfinite(values).all():
        layer, head = np.argwhere(~np.isfinite(values))[0][:2]
        raise HeteroError(f"layer {layer}: `index.{name}` of head {head} holds a number that is not finite.")
    return values
