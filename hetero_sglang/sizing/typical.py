"""A head profile to reckon with where a model has none yet: what a first start found of SmolLM2-135M-Instruct's heads,
spread over the heads of another shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetero_sglang.calibration.checkpoint import Shape
from hetero_sglang.calibration.index import DEFAULT_FIELDS, fit_fields
from hetero_sglang.profile.ablation import alike
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.index_plan import EVERY, RUNS, IndexPlan, directions_of

# Share of the heads without a key index, and of the layers whose heads find rows in every step, every second, every
# fourth; of the layers whose rows come one by one, in runs of 4, of 8; quantiles of heads' shares of the rows.
TURNS = (0.04, 0.53, 0.24, 0.23)
RUNS_SHARES = (0.8, 0.07, 0.13)
WEIGHTS = (0.6, 0.63, 0.77, 0.98, 1.27, 2.0)


def spread(
    layers: int, heads: int, rng: np.random.Generator, turns: Sequence[float] = TURNS,
    runs: Sequence[float] = RUNS_SHARES, weights: Sequence[float] = WEIGHTS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """An index's `run` [layers], `every` and `weight` [layers, heads]. Layers whose rows come in long runs find some
    most seldom."""
    none, *shares = turns
    number, upto = rng.permutation(layers)[:, None], np.cumsum(shares)[:-1] * layers
    every = np.array(EVERY)[np.searchsorted(upto, number, side="right")]
    run = np.array(RUNS)[np.searchsorted(np.cumsum(runs)[:-1] * layers, number[:, 0], side="right")]
    every = every * (rng.permutation(layers * heads).reshape(layers, heads) >= none * layers * heads)
    weight = rng.permutation(np.quantile(weights, np.linspace(0, 1, layers * heads))).reshape(layers, heads)
    return run, every, weight


def typical_profile(shape: Shape) -> HeadProfile:
    """Of a model's shape; its index has the size of a real one and knows nothing."""
    fields = fit_fields(DEFAULT_FIELDS, shape.head_dim)
    size, count = (shape.num_layers, shape.num_kv_heads), directions_of(fields)
    nothing = np.zeros((*size, shape.head_dim, count), np.float32)
    run, every, weight = spread(*size, np.random.default_rng(0))
    index = IndexPlan(fields, nothing, np.zeros((*size, count), np.float32), nothing, run, every, weight)
    return alike(*size, shape.num_query_heads, shape.head_dim, index)
