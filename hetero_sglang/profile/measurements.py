"""What calibration measured of every head, beside the roles decided from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.json_file import is_number


@dataclass(frozen=True, eq=False)
class Measurements:
    """Means and spreads (standard deviations) over documents; all overlaps are in [0, 1]."""

    stability: np.ndarray  # [layers, heads]
    stability_spread: np.ndarray  # [layers, heads]
    similarity: np.ndarray  # [layers, heads, heads]
    similarity_spread: np.ndarray  # [layers, heads, heads]
    overlap: np.ndarray  # [layers, heads, steps]: with the prefill top-k, per decode step

    def encode(self) -> dict[str, Any]:
        """Nested lists, rounded to four digits."""
        return {f.name: np.round(getattr(self, f.name), 4).tolist() for f in fields(self)}

    @classmethod
    def decode(cls, data: Any, num_layers: int, num_kv_heads: int) -> Measurements:
        """Raises HeteroError naming the table that is absent, misshapen or out of [0, 1]."""
        if not isinstance(data, Mapping):
            raise HeteroError(f"`measurements` is {type(data).__name__}; it must be an object or be left out.")
        alone, pairs = (num_layers, num_kv_heads), (num_layers, num_kv_heads, num_kv_heads)
        shapes = dict(zip((f.name for f in fields(cls)), (alone, alone, pairs, pairs, (*alone, None)), strict=True))
        return cls(**{name: _array(data.get(name), name, shape) for name, shape in shapes.items()})


def _array(value: Any, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64) if _is_table(value, len(shape)) else None
    except ValueError:  # rows of different lengths
        array = None
    if array is None:
        raise HeteroError(f"`measurements.{name}` is missing or not a table of numbers.")
    if any(wanted not in (size, None) for size, wanted in zip(array.shape, shape, strict=False)):
        raise HeteroError(f"`measurements.{name}` has shape {array.shape}; it must be {shape} for this model.")
    if not ((array >= 0.0) & (array <= 1.0)).all():
        raise HeteroError(f"`measurements.{name}` holds a number outside [0, 1].")
    return array


def _is_table(value: Any, depth: int) -> bool:
    """Whether numbers lie `depth` lists deep, and nothing else does; numpy would take "0.5" and true for some."""
    if depth == 0:
        return is_number(value)
    return isinstance(value, list) and all(_is_table(item, depth - 1) for item in value)
