"""The roles, weights and clusters of every KV head of a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.clusters import heads_per_rank
from hetero_sglang.profile.roles import Role

if TYPE_CHECKING:
    from hetero_sglang.profile.index_plan import IndexPlan
    from hetero_sglang.profile.measurements import Measurements

NO_PIVOT = -1


@dataclass(frozen=True)
class LayerRoles:
    """One layer's KV heads. `weights` is 0.0 for resident heads; `pivots` is a satellite's pivot, a pivot's
    own index, -1 otherwise. Raises HeteroError naming the head that breaks these rules."""

    roles: tuple[Role, ...]
    weights: tuple[float, ...]
    pivots: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.roles) == len(self.weights) == len(self.pivots):
            raise HeteroError(
                f"{len(self.roles)} roles, {len(self.weights)} weights and {len(self.pivots)} pivots are "
                "listed; every head needs one of each."
            )
        for head, (role, weight, pivot) in enumerate(zip(self.roles, self.weights, self.pivots, strict=True)):
            if role.resident and weight != 0.0:
                raise HeteroError(f"head {head} ({role.value}) is resident but has weight {weight:g}; it must be 0.")
            if not role.resident and not (math.isfinite(weight) and weight > 0.0):
                raise HeteroError(f"head {head} ({role.value}) is compressed but has weight {weight:g}; "
                                  "it must be a positive number.")  # fmt: skip
            self._check_pivot(head, role, pivot)

    def _check_pivot(self, head: int, role: Role, pivot: int) -> None:
        if role is Role.PIVOT:
            good, wanted = pivot == head, f"{head}, its own index"
        elif role is Role.SATELLITE:
            good = 0 <= pivot < len(self.roles) and self.roles[pivot] is Role.PIVOT
            wanted = "the index of a pivot in the same layer"
        else:
            good, wanted = pivot == NO_PIVOT, str(NO_PIVOT)
        if not good:
            raise HeteroError(f"head {head} ({role.value}) names {pivot} as its pivot; it must be {wanted}.")

    @property
    def resident(self) -> tuple[int, ...]:
        """Ascending indices of pivot and volatile heads."""
        return tuple(h for h, role in enumerate(self.roles) if role.resident)

    @property
    def compressed(self) -> tuple[int, ...]:
        """Ascending indices of satellite and anchor heads."""
        return tuple(h for h, role in enumerate(self.roles) if not role.resident)

    @property
    def clusters(self) -> dict[int, list[int]]:
        """Pivot -> its satellites, ascending."""
        found: dict[int, list[int]] = {h: [] for h, role in enumerate(self.roles) if role is Role.PIVOT}
        for head, role in enumerate(self.roles):
            if role is Role.SATELLITE:
                found[self.pivots[head]].append(head)
        return found

    def heads(self, start: int, stop: int) -> LayerRoles:
        """Heads [start, stop) renumbered from 0; a satellite whose pivot lies outside becomes an anchor."""
        roles, pivots = list(self.roles[start:stop]), []
        for local, pivot in enumerate(self.pivots[start:stop]):
            inside = start <= pivot < stop
            if roles[local] is Role.SATELLITE and not inside:
                roles[local] = Role.ANCHOR
            pivots.append(pivot - start if inside else NO_PIVOT)
        return LayerRoles(tuple(roles), self.weights[start:stop], tuple(pivots))


@dataclass(frozen=True)
class HeadProfile:
    """Roles of every KV head of a model, with what they were made from.

    `num_query_heads` and `head_dim` are None where the source did not say. Raises HeteroError naming the
    layer at fault."""

    num_layers: int
    num_kv_heads: int
    num_query_heads: int | None
    head_dim: int | None
    layers: tuple[LayerRoles, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict, hash=False)
    measurements: Measurements | None = field(default=None, hash=False, compare=False, repr=False)
    index: IndexPlan | None = field(default=None, hash=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.layers) != self.num_layers or not self.layers:
            raise HeteroError(f"{len(self.layers)} layers are listed for a model of {self.num_layers}; list each once.")
        for index, layer in enumerate(self.layers):
            if len(layer.roles) != self.num_kv_heads or not layer.roles:
                raise HeteroError(
                    f"layer {index} lists {len(layer.roles)} heads and the model has {self.num_kv_heads}; "
                    "list each once."
                )
        ours = (self.num_layers, self.num_kv_heads, self.head_dim)
        if self.index is not None and self.index.encode.shape[:3] != ours:
            raise HeteroError(
                "the key index is of {} layers of {} KV heads of {} dimensions and the profile of {}, {} and {}; "
                "make the index with `hetero-sglang profile index`.".format(*self.index.encode.shape[:3], *ours)
            )

    @property
    def num_heads(self) -> int:
        """H: KV heads of all layers."""
        return self.num_layers * self.num_kv_heads

    @property
    def num_resident(self) -> int:
        """R: pivot and volatile heads of all layers."""
        return sum(len(layer.resident) for layer in self.layers)

    @property
    def counts(self) -> Counter[Role]:
        """Heads of each role."""
        return Counter(role for layer in self.layers for role in layer.roles)

    @property
    def floor(self) -> float:
        """R/H: the keep ratio must exceed this."""
        return self.num_resident / self.num_heads

    def slice(self, rank: int, size: int) -> HeadProfile:
        """The heads of one tensor-parallel rank, weights scaled to mean 1 again.

        Ranks hold contiguous heads; with more ranks than KV heads each head is on size/num_kv_heads ranks, as
        SGLang replicates them. Raises HeteroError where the division leaves a remainder."""
        count = heads_per_rank(self.num_kv_heads, size)
        if count is None:
            return self
        start = rank * self.num_kv_heads // size
        layers = scale_weights(tuple(layer.heads(start, start + count) for layer in self.layers))
        query = None if self.num_query_heads is None else self.num_query_heads // size
        index = None if self.index is None else self.index.heads(start, start + count)
        return replace(
            self, num_kv_heads=count, num_query_heads=query, layers=layers, measurements=None, index=index
        )  # measurements speak of all heads

    def check_weights(self) -> None:
        """Raises HeteroError unless the weights of compressed heads have mean 1."""
        weights = [w for layer in self.layers for w in layer.weights if w > 0.0]
        if weights and abs((mean := sum(weights) / len(weights)) - 1.0) > 1e-3:
            raise HeteroError(
                f"the weights of the {len(weights)} compressed heads have mean {mean:.4f}; scale them to mean 1."
            )

    def check_model(
        self, num_layers: int, num_query_heads: int, num_kv_heads: int, head_dim: int, name: str | Path = ""
    ) -> None:
        """Raises HeteroError naming the file, `name`, and the first way in which the model is not the one profiled."""
        pairs = (
            ("layers", self.num_layers, num_layers),
            ("query heads", self.num_query_heads, num_query_heads),
            ("KV heads", self.num_kv_heads, num_kv_heads),
            ("dimensions per head", self.head_dim, head_dim),
        )
        for noun, ours, theirs in pairs:
            if ours is not None and ours != theirs:
                file = f" {name}" if name else ""
                raise HeteroError(
                    f"the head profile{file} is of a model with {ours} {noun}, this model has {theirs}; use the "
                    "profile of this model or make one with `hetero-sglang profile`."
                )


def scale_weights(layers: tuple[LayerRoles, ...]) -> tuple[LayerRoles, ...]:
    """The same layers with weights of mean 1 over all compressed heads."""
    given = [w for layer in layers for w in layer.weights if w > 0.0]
    if not given:
        return layers
    mean = math.fsum(given) / len(given)
    return tuple(replace(layer, weights=tuple(w / mean for w in layer.weights)) for layer in layers)
