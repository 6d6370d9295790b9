"""Thresholds that allow a keep ratio, at the smallest loss in measured overlap."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.clusters import star_clusters
from hetero_sglang.profile.measurements import Measurements
from hetero_sglang.profile.thresholds import Thresholds

# In steps of 0.01, and finer at the top, where heads measured by their output lie.
GRID = (*(round(step / 100, 2) for step in range(1, 95)), *(round(step / 500, 3) for step in range(475, 500)))


@dataclass(frozen=True)
class Choice:
    """What a pair of thresholds gives."""

    thresholds: Thresholds
    resident: int  # R
    heads: int  # H
    loss: float  # mean over all heads of 1 - the overlap relied on; resident heads lose nothing
    least_base: float  # share of its tokens that a compressed head of weight 1 is to keep

    @property
    def floor(self) -> float:
        """R/H."""
        return self.resident / self.heads

    @property
    def least_keep_ratio(self) -> float:
        """The keep ratio at which a compressed head of weight 1 keeps `least_base` of its tokens."""
        return self.floor + self.least_base * (1.0 - self.floor)


def choices(measured: Measurements, least_base: float, per_rank: int | None = None) -> list[Choice]:
    """One choice per distinct outcome of thresholds on a grid of 0.01, fewest resident heads first.

    A satellite relies on its similarity to its pivot, an anchor on its stability. Both were measured on sets
    of `least_base` of the tokens, so they say nothing about heads that keep fewer."""
    stability, heads = measured.stability, measured.stability.size
    found: dict[tuple[float, int], Choice] = {}
    for similar in GRID:
        alone = np.ones(stability.shape, dtype=bool)  # [layers, heads]
        pivots, satellite_loss = 0, 0.0
        for layer, similarity in enumerate(measured.similarity):
            for pivot, satellites in star_clusters(similarity, similar, per_rank).items():
                alone[layer, [pivot, *satellites]] = False
                pivots += 1
                satellite_loss += float((1.0 - similarity[pivot, satellites]).sum())
        for stable in GRID:
            anchors = alone & (stability >= stable)
            resident = pivots + int((alone & ~anchors).sum())
            loss = (satellite_loss + float((1.0 - stability[anchors]).sum())) / heads
            found.setdefault((loss, resident), Choice(Thresholds(stable, similar), resident, heads, loss, least_base))
    return sorted(found.values(), key=lambda c: (c.resident, c.loss))


def choose(options: list[Choice], keep_ratio: float) -> Choice:
    """The smallest loss that allows `keep_ratio`. Raises HeteroError with the least ratio of any choice."""
    allowed = [option for option in options if option.least_keep_ratio <= keep_ratio]
    if not allowed:
        least = min(option.least_keep_ratio for option in options)
        raise HeteroError(
            f"no clustering of these heads allows keep ratio {keep_ratio:g}; choose at least {least:.3f}."
        )
    return min(allowed, key=lambda option: (option.loss, option.resident))


def topk_share(about: Mapping[str, Any]) -> float:
    """Share of a text's tokens in the measured sets, mean over texts. HeteroError where it is not said."""
    try:
        shares = [text["topk"] / text["tokens"] for text in about["texts"]]
        if not all(0 < share <= 1 for share in shares):
            raise ValueError
        return sum(shares) / len(shares)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise HeteroError(
            "`provenance.texts` does not give the tokens and topk of each text; profile the model again."
        ) from None
