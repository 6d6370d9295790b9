"""How a compressed head's keys become an index of a few bits each: directions and spread, found once by calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hetero_sglang.errors import HeteroError

WORD = 16  # bits; a field of directions fills whole words
STEPS = {1: 1.596, 2: 0.9957, 4: 0.3352}  # by bits: the best uniform quantiser's step for a unit normal
RUNS = (1, 4, 8)
EVERY = (1, 2, 4)

Fields = tuple[tuple[int, int], ...]


def directions_of(fields: Sequence[tuple[int, int]]) -> int:
    """R, of all fields."""
    return sum(count for count, _ in fields)


def words(fields: Fields) -> int:
    """16-bit words of one token's index row."""
    return sum(count * bits for count, bits in fields) // WORD


def check_fields(fields: Sequence[tuple[int, int]]) -> None:
    """Raises HeteroError unless every field is some directions of 1, 2 or 4 bits that fill whole words."""
    for count, bits in fields:
        if bits not in STEPS or count < 1 or count * bits % WORD:
            raise HeteroError(
                f"an index of {count} directions in {bits} bits is not possible: bits are 1, 2 or 4, and "
                f"directions times bits a multiple of {WORD}."
            )
    if not fields:
        raise HeteroError("an index needs a direction at least; list some.")


def half(values: np.ndarray, noun: str) -> np.ndarray:
    """Values [layers, H, ...] in float16. Raises HeteroError naming the head with a number beyond it."""
    beyond = ~(np.abs(values) <= np.finfo(np.float16).max)
    if beyond.any():
        layer, head = np.argwhere(beyond)[0][:2]
        raise HeteroError(
            f"layer {layer} head {head}: {noun} has {values[beyond][0]:g}, beyond float16; check the model's weights."
        )
    return values.astype(np.float16)


@dataclass(frozen=True, eq=False)
class IndexPlan:
    """Every head's index: a key k becomes codes c = round(k encode - offset), clamped to each direction's bits, and a
    query q's logit of that key is, but for what all keys share, (q decode) . c.

    `fields`: (directions, bits) in turn, R directions in all. encode, decode [layers, H, D, R] float32; offset
    [layers, H, R] float32. `run` [layers] whole numbers, or one for all: neighbouring tokens that come and go together.
    `every` [layers, H] whole numbers (None: all 1): a head finds rows in one of so many steps; 0: it has no index, and
    keeps what the prompt's end chose. `weight` [layers, H] float64 above 0 (None: all 1): its rows, of the mean head's.
    Raises HeteroError naming what is wrong."""

    fields: Fields
    encode: np.ndarray
    offset: np.ndarray
    decode: np.ndarray
    run: np.ndarray = 1
    every: np.ndarray = None
    weight: np.ndarray = None

    def __post_init__(self) -> None:
        check_fields(self.fields)
        shape, count = self.encode.shape, self.directions
        run = np.broadcast_to(self.run, shape[:1]) if np.ndim(self.run) == 0 else np.asarray(self.run)
        object.__setattr__(self, "run", run.astype(np.int32))
        if run.shape != shape[:1]:
            raise HeteroError(f"an index of {shape[0]} layers has runs of {len(run)}.")
        if (odd := self.run[~np.isin(self.run, RUNS)]).size:
            raise HeteroError(f"an index's run is {odd[0]}; it must be one of {', '.join(map(str, RUNS))}.")
        if shape[3:] != (count,) or self.decode.shape != shape or self.offset.shape != (*shape[:2], count):
            raise HeteroError(
                f"the encoding, decoding and offset of an index of {count} directions have shapes {shape}, "
                f"{self.decode.shape} and {self.offset.shape}, which do not agree."
            )
        for name, kind in (("every", np.int32), ("weight", np.float64)):
            given = getattr(self, name)
            table = np.ones(shape[:2], kind) if given is None else given.astype(kind)
            object.__setattr__(self, name, table)
            if table.shape != shape[:2]:
                raise HeteroError(f"an index of {shape[0]} layers of {shape[1]} heads names others ({table.shape}).")
        if (odd := self.every[~np.isin(self.every, (0, *EVERY))]).size:
            raise HeteroError(
                f"a head cannot find rows in every {odd[0]} steps; it must be one of 0, {', '.join(map(str, EVERY))}."
            )
        if (odd := self.weight[~(self.weight > 0)]).size:
            raise HeteroError(f"a head's weight is {odd[0]:g}; it must be above 0.")
        if not all(np.isfinite(values).all() for values in (self.encode, self.offset, self.decode)):
            raise HeteroError("an index's numbers are not all finite; calibrate again.")

    @property
    def directions(self) -> int:
        """R."""
        return directions_of(self.fields)

    @property
    def longest(self) -> int:
        """Of the layers' runs."""
        return int(self.run.max())

    @property
    def probed(self) -> np.ndarray:
        """Heads that have an index: bool [layers, H]."""
        return self.every > 0

    @property
    def in_a_step(self) -> float:
        """Heads that find rows in a step, on the mean."""
        return float((1 / self.every[self.probed]).sum())

    @property
    def row_bytes(self) -> int:
        """Device bytes of one token's index row, per head."""
        return 2 * words(self.fields)

    def heads(self, start: int, stop: int) -> IndexPlan:
        """The plan of heads [start, stop) of every layer."""
        cut = np.s_[:, start:stop]
        tables = (self.encode[cut], self.offset[cut], self.decode[cut])
        return IndexPlan(self.fields, *tables, self.run, self.every[cut], self.weight[cut])
