"""Profiles that leave out one of HeteroCache's ideas, to measure what it is worth; and one that knows nothing."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hetero_sglang.profile.head_profile import NO_PIVOT, HeadProfile, LayerRoles, scale_weights
from hetero_sglang.profile.index_plan import IndexPlan
from hetero_sglang.profile.roles import Role


def alike(layers: int, kv_heads: int, query_heads: int, head_dim: int, index: IndexPlan | None = None) -> HeadProfile:
    """Every head compressed and no pivot: what policies without roles start from; with the same budget, or that of
    an index."""
    weights = np.ones((layers, kv_heads)) if index is None else index.weight
    roles, pivots = (Role.ANCHOR,) * kv_heads, (NO_PIVOT,) * kv_heads
    made = tuple(LayerRoles(roles, tuple(row), pivots) for row in weights.tolist())
    return HeadProfile(layers, kv_heads, query_heads, head_dim, scale_weights(made), index=index)


def uniform(profile: HeadProfile) -> HeadProfile:
    """The same roles, and the same budget for every compressed head."""
    return _reweighted(profile, lambda layer: 1.0)


def layerwise(profile: HeadProfile) -> HeadProfile:
    """The same roles, and the layer's mean budget for each of its compressed heads."""
    return _reweighted(profile, lambda layer: sum(layer.weights) / max(1, len(layer.compressed)))


def without_clusters(profile: HeadProfile) -> HeadProfile:
    """Nobody watches for anybody: pivots and satellites become anchors, volatile heads stay resident."""
    mean = 1.0  # what a pivot's own weight would have been is not recorded
    layers = []
    for layer in profile.layers:
        roles = tuple(role if role is Role.VOLATILE else Role.ANCHOR for role in layer.roles)
        weights = tuple(0.0 if r.resident else w or mean for r, w in zip(roles, layer.weights, strict=True))
        layers.append(LayerRoles(roles, weights, (NO_PIVOT,) * len(roles)))
    return replace(profile, layers=scale_weights(tuple(layers)), measurements=None)


def _reweighted(profile: HeadProfile, weight_in: Callable[[LayerRoles], float]) -> HeadProfile:
    layers = tuple(
        replace(layer, weights=tuple(0.0 if role.resident else weight_in(layer) for role in layer.roles))
        for layer in profile.layers
    )
    return replace(profile, layers=scale_weights(layers), measurements=None)


ABLATIONS: dict[str, Callable[[HeadProfile], HeadProfile]] = {
    "none": lambda profile: profile,
    "uniform": uniform,
    "no-clusters": without_clusters,
    "layer-wise": layerwise,
}
