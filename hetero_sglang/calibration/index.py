"""The best directions for a key index: those in which queries and keys together have most to say.

Keys are seen through the queries that read them: with Cq the queries' second moment, Ck the keys' covariance and
R = Cq^(1/2), the eigenvectors u of R Ck R are independent, and what is lost with one is the mean square of its part of
the logits, its eigenvalue. A key's part is k . R u, a query's q . R^(-1) u."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.index_plan import STEPS, WORD, Fields, IndexPlan, check_fields, half

if TYPE_CHECKING:
    from hetero_sglang.calibration.moments import HeadMoments  # imports torch, for which options need not wait

DEFAULT_FIELDS: Fields = ((8, 4), (24, 2))
_RIDGE = 1e-4  # of the mean square of a query's dimension, so that dimensions no query uses can be inverted
_SPREAD = 1e-4  # of the widest direction; below, keys differ by rounding alone


def fit_fields(fields: Fields, head_dim: int) -> Fields:
    """The fields as far as a head has directions for them. Raises HeteroError where it has too few for a word."""
    found, left = [], head_dim
    for count, bits in fields:
        unit = WORD // bits
        count = min(count, left) // unit * unit
        if count:
            found.append((count, bits))
            left -= count
    if not found:
        raise HeteroError(f"heads of {head_dim} dimensions are too small for an index; serve this model without one.")
    return tuple(found)


def plan_index(moments: Sequence[HeadMoments], fields: Fields, run: int = 1) -> IndexPlan:
    """The plan of every layer's heads, in numbers that float16 holds, as files do; most bits for the widest directions.

    Raises HeteroError for impossible fields, more directions than dimensions, and a head beyond float16."""
    fields = tuple(sorted(fields, key=lambda field: -field[1]))
    check_fields(fields)
    bits = np.repeat([b for _, b in fields], [count for count, _ in fields])  # [R]
    head_dim = moments[0].mean.shape[1]
    if len(bits) > head_dim:
        raise HeteroError(f"an index of {len(bits)} directions does not fit heads of {head_dim} dimensions; list less.")
    step = np.array([STEPS[b] for b in bits])
    middle = (2.0**bits - 1) / 2
    means = np.stack([found.mean for found in moments])  # [layers, H, D]
    keys, queries, spread = (np.stack(part)[..., : len(bits)] for part in zip(*map(directions, moments), strict=True))
    unit = spread[:, :, None] * step  # [layers, H, 1, R]
    live = unit > 0
    encode = half(np.where(live, keys / np.where(live, unit, 1), 0), "the index").astype(np.float32)
    # From the rounded encoding: a mean many spreads from zero would carry its rounding into every code.
    offset = half(np.einsum("lhd,lhdr->lhr", means, encode.astype(np.float64)) - middle, "the index").astype(np.float32)
    decode = half(queries * unit, "the index").astype(np.float32)
    return IndexPlan(fields, encode, offset, decode, run)


def directions(moments: HeadMoments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Key sides [H, D, D], query sides [H, D, D], one direction a column, and their spreads [H, D], widest first.

    A key's and a query's sides times each other, summed over all directions, are their product. Directions without
    spread are given as 0."""
    dim = moments.queries.shape[1]
    power = np.trace(moments.queries, axis1=1, axis2=2) / dim
    ridge = np.where(power > 0, _RIDGE * power, 1.0)
    values, vectors = np.linalg.eigh(moments.queries + ridge[:, None, None] * np.eye(dim))
    root = np.sqrt(np.maximum(values, ridge[:, None] / 2))[:, None]  # [H, 1, D]
    turned = vectors.transpose(0, 2, 1)
    forth, back = (vectors * root) @ turned, (vectors / root) @ turned
    squares, u = np.linalg.eigh(forth @ moments.covariance @ forth)
    spread, u = np.sqrt(np.maximum(squares[:, ::-1], 0)), u[..., ::-1]
    spread = np.where(spread > _SPREAD * spread[:, :1], spread, 0)
    return forth @ u, back @ u, spread
