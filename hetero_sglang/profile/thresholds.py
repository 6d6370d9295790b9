"""From measurements to roles, at given thresholds."""

from dataclasses import dataclass

import numpy as np

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.clusters import star_clusters
from hetero_sglang.profile.head_profile import NO_PIVOT, LayerRoles
from hetero_sglang.profile.measurements import Measurements
from hetero_sglang.profile.roles import Role

# Below this a head has kept nothing; dividing by less would hand it everyone's budget.
LEAST_STABILITY = 0.01


@dataclass(frozen=True)
class Thresholds:
    """Both in (0, 1), HeteroError otherwise; the defaults are the paper's."""

    stable: float = 0.5
    similar: float = 0.5

    def __post_init__(self) -> None:
        for option, value in (("--tau-stable", self.stable), ("--tau-sim", self.similar)):
            if not 0.0 < value < 1.0:
                raise HeteroError(f"`{option}` is {value:g}; choose a threshold between 0 and 1, both excluded.")


def classify(measured: Measurements, thresholds: Thresholds, per_rank: int | None = None) -> tuple[LayerRoles, ...]:
    """Roles, pivots and weights of every layer; weights have mean 1 over all compressed heads.

    Clustered heads are pivot or satellite. Of the others, those whose stability reaches the threshold are
    anchors, the rest volatile. `per_rank` heads form the groups inside which clusters are sought."""
    roles, pivots = [], []
    for stability, similarity in zip(measured.stability, measured.similarity, strict=True):
        of_layer = [Role.ANCHOR if s >= thresholds.stable else Role.VOLATILE for s in stability]
        pivot_of = [NO_PIVOT] * len(stability)
        for pivot, satellites in star_clusters(similarity, thresholds.similar, per_rank).items():
            of_layer[pivot], pivot_of[pivot] = Role.PIVOT, pivot
            for head in satellites:
                of_layer[head], pivot_of[head] = Role.SATELLITE, pivot
        roles.append(tuple(of_layer))
        pivots.append(tuple(pivot_of))
    compressed = np.array([[not role.resident for role in layer] for layer in roles])
    weights = np.zeros(measured.stability.shape)
    weights[compressed] = stability_weights(measured.stability[compressed])
    return tuple(
        LayerRoles(r, tuple(np.round(w, 6).tolist()), p) for r, w, p in zip(roles, weights, pivots, strict=True)
    )


def stability_weights(stability: np.ndarray) -> np.ndarray:
    """A compressed head's share of the budget, 1/stability normalised to mean 1 (HeteroCache, allocation by stability).

    Shape is kept, an empty array stays empty."""
    if not stability.size:
        return stability
    inverse = 1.0 / np.maximum(stability, LEAST_STABILITY)
    return inverse / inverse.mean()
