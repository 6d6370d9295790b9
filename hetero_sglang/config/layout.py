"""Which KV heads of this tensor-parallel rank are resident, which are compressed, and who watches for whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from hetero_sglang.profile.budget import cap_fractions, fill
from hetero_sglang.profile.head_profile import HeadProfile

OWN = -1  # in place of a cluster: the head has no pivot and is refreshed as an anchor is


@dataclass(frozen=True)
class Cluster:
    """A pivot and the satellites it speaks for, by index among the layer's resident and compressed heads."""

    pivot: int
    satellites: tuple[int, ...]


@dataclass(frozen=True)
class LayerLayout:
    """One layer's heads on this rank; `fractions[i]` is the share of the tokens compressed head i may keep."""

    resident: tuple[int, ...]
    compressed: tuple[int, ...]
    fractions: tuple[float, ...]
    clusters: tuple[Cluster, ...]
    first: int  # compressed heads in earlier layers: head i here is number first + i of the rank

    @cached_property
    def resident_index(self) -> torch.Tensor:
        return torch.tensor(self.resident, dtype=torch.int64)

    @cached_property
    def compressed_index(self) -> torch.Tensor:
        return torch.tensor(self.compressed, dtype=torch.int64)

    @cached_property
    def leader(self) -> tuple[int, ...]:
        """Index of each compressed head's cluster; OWN for anchors."""
        of = {satellite: index for index, cluster in enumerate(self.clusters) for satellite in cluster.satellites}
        return tuple(of.get(i, OWN) for i in range(len(self.compressed)))


@dataclass(frozen=True)
class HeadLayout:
    """Every layer's heads on one rank, in layer order."""

    layers: tuple[LayerLayout, ...]

    @cached_property
    def num_resident(self) -> int:
        return sum(len(layer.resident) for layer in self.layers)

    @cached_property
    def num_compressed(self) -> int:
        return sum(len(layer.compressed) for layer in self.layers)

    @cached_property
    def fractions(self) -> tuple[float, ...]:
        """The share of tokens each compressed head of the rank keeps, in head-number order."""
        return tuple(f for layer in self.layers for f in layer.fractions)


def build_layout(profile: HeadProfile, keep_ratio: float, rank: int = 0, size: int = 1) -> HeadLayout:
    """Cut the model's profile and budget down to one rank; caps come from the whole model's budget."""
    first_head = rank * profile.num_kv_heads // size  # replicated when ranks outnumber heads (SGLang layers/linear.py)
    whole = cap_fractions(profile, keep_ratio)
    layers: list[LayerLayout] = []
    first = 0
    for mine, theirs, fractions in zip(profile.slice(rank, size).layers, profile.layers, whole, strict=True):
        share = dict(zip(theirs.compressed, fractions, strict=True))
        resident_at = {head: i for i, head in enumerate(mine.resident)}
        members: dict[int, list[int]] = {}
        for i, head in enumerate(mine.compressed):
            if mine.pivots[head] >= 0:
                members.setdefault(resident_at[mine.pivots[head]], []).append(i)
        layers.append(
            LayerLayout(
                resident=mine.resident,
                compressed=mine.compressed,
                fractions=tuple(share[first_head + h] for h in mine.compressed),
                clusters=tuple(Cluster(p, tuple(s)) for p, s in sorted(members.items())),
                first=first,
            )
        )
        first += len(mine.compressed)
    return HeadLayout(tuple(layers))


def adapter_fractions(adapter: HeadProfile, ranks: Sequence[HeadLayout]) -> tuple[tuple[float, ...], ...]:
    """By rank, the share of its tokens that each compressed head of an adapter's request may keep: a rank's heads keep
    as much together as of the model's, by the weights of the adapter, whose roles are the model's."""
    cut = [adapter.slice(rank, len(ranks)).layers for rank in range(len(ranks))]
    weights = ([layer.weights[head] for layer in mine for head in layer.compressed] for mine in cut)
    return tuple(tuple(fill(mine, sum(rank.fractions))) for mine, rank in zip(weights, ranks, strict=True))


def over_ranks(ranks: Sequence[HeadLayout], heads: int, values: Sequence[Sequence[float] | np.ndarray]) -> np.ndarray:
    """By layer and KV head of the model [layers, heads], `values` of each rank's compressed heads; of others 1."""
    found = np.ones((len(ranks[0].layers), heads))
    for rank, (layout, mine) in enumerate(zip(ranks, values, strict=True)):
        first = rank * heads // len(ranks)
        for index, layer in enumerate(layout.layers):
            end = layer.first + len(layer.compressed)
            found[index, [first + head for head in layer.compressed]] = mine[layer.first : end]
    return found
