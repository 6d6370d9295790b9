"""A key index as it stands in a head profile's file: small numbers as text, tables as base64 of float16."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from reprlib import repr as shown
from typing import Any

import numpy as np

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.index_plan import Fields, IndexPlan, check_fields
from hetero_sglang.profile.json_file import is_whole

_NUMBER = np.dtype("<f2")


def encode(plan: IndexPlan) -> dict[str, Any]:
    """The JSON object. Raises HeteroError naming the head with a number beyond float16."""
    return {
        "fields": [list(field) for field in plan.fields],
        "run": plan.run,
        "encode": _text(plan.encode, "encode"),
        "offset": _text(plan.offset, "offset"),
        "decode": _text(plan.decode, "decode"),
    }


def decode(data: Any, num_layers: int, num_kv_heads: int, head_dim: int | None) -> IndexPlan:
    """Raises HeteroError naming the place that is wrong."""
    if not isinstance(data, Mapping):
        raise HeteroError(f"`index` is {type(data).__name__}; it must be an object or be left out.")
    if head_dim is None:
        raise HeteroError("`index` is given but `model.head_dim` is not; its tables cannot be read without it.")
    fields = _fields(data.get("fields"), head_dim)
    run = data.get("run")
    if not is_whole(run):
        raise HeteroError(f"`index.run` is {shown(run)}; it must be a whole number.")
    directions = sum(count for count, _ in fields)
    table = (num_layers, num_kv_heads, head_dim, directions)
    shapes = {"encode": table, "offset": (*table[:2], directions), "decode": table}
    try:
        return IndexPlan(fields, run=run, **{name: _table(data, name, shape) for name, shape in shapes.items()})
    except HeteroError as error:
        said = str(error)
        raise HeteroError(said if said.startswith("`") else f"`index`: {said}") from None


def text_bytes(num_layers: int, num_kv_heads: int, head_dim: int, fields: Fields) -> int:
    """Bytes of the tables in a file, about."""
    directions = sum(count for count, _ in fields)
    return num_layers * num_kv_heads * (2 * head_dim + 1) * directions * _NUMBER.itemsize * 4 // 3


def _fields(value: Any, head_dim: int) -> Fields:
    if not isinstance(value, list) or len(value) > head_dim:
        raise HeteroError(f"`index.fields` is {shown(value)}; it must list pairs of directions and bits.")
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(is_whole, pair)):
            raise HeteroError(f"`index.fields` holds {shown(pair)}; it must list pairs of directions and bits.")
    fields = tuple((count, bits) for count, bits in value)
    try:
        check_fields(fields)
    except HeteroError as error:
        raise HeteroError(f"`index.fields`: {error}") from None
    if (directions := sum(count for count, _ in fields)) > head_dim:
        raise HeteroError(f"`index.fields` lists {directions} directions and `model.head_dim` is {head_dim}.")
    return fields


def _text(values: np.ndarray, name: str) -> str:
    beyond = np.abs(values) > np.finfo(_NUMBER).max
    if beyond.any():
        layer, head = np.argwhere(beyond)[0][:2]
        raise HeteroError(
            f"layer {layer} head {head}: the index's {name} has {values[beyond][0]:g}, beyond float16; "
            "check the model's weights."
        )
    return base64.b64encode(values.astype(_NUMBER).tobytes()).decode("ascii")


def _table(data: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    text = data.get(name)
    if not isinstance(text, str):
        raise HeteroError(f"`index.{name}` is missing; it must be base64 text of float16 numbers.")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: not ASCII
        raise HeteroError(f"`index.{name}` is not base64 ({str(error).rstrip('.')}).") from None
    wanted = _NUMBER.itemsize
    for size in shape:
        wanted *= size
    if len(raw) != wanted:
        raise HeteroError(f"`index.{name}` holds {len(raw)} bytes; it must hold {wanted}, {shape} numbers of 16 bits.")
    values = np.frombuffer(raw, _NUMBER).reshape(shape).astype(np.float32)
    if not np.isfinite(values).all():
        layer, head = np.argwhere(~np.isfinite(values))[0][:2]
        raise HeteroError(f"layer {layer}: `index.{name}` of head {head} holds a number that is not finite.")
    return values
