"""A compressed head's share of the budget (HeteroCache, allocation by stability)."""

from __future__ import annotations

import numpy as np

# Below this a head has kept nothing; dividing by less would hand it everyone's budget.
LEAST_STABILITY = 0.01


def stability_weights(stability: np.ndarray) -> np.ndarray:
    """1/stability normalised to mean 1; shape is kept, an empty array stays empty."""
    if not stability.size:
        return stability
    inverse = 1.0 / np.maximum(stability, LEAST_STABILITY)
    return inverse / inverse.mean()
