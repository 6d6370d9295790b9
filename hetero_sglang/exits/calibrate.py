"""Thresholds from held-out tokens: as little to read as an agreement allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.operating_point import OperatingPoint

GRID = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)
_SWEEPS = 8  # over all branches; mostly 3 change something
_HALVINGS = 24  # of the price of a disagreement
_DEAREST = 1e5  # layers
_MARGIN = 1.645  # standard errors: nineteen of twenty texts like those that were read agree as often, or more
# Threshold 1 means never, so that a full confidence must count as a little less.
_MOST = np.nextafter(np.float32(1), np.float32(0))


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What branches said of n held-out tokens: how sure each was, whether its first choice was that of full depth, and
    by how many nats its loss on the text was above that of full depth.

    Raises HeteroError for tables that are not of these branches, without tokens, and for confidences outside (0, 1]."""

    confidence: np.ndarray  # [B, n] float32
    agrees: np.ndarray  # [B, n] bool
    losses: np.ndarray  # [B, n] float32
    windows: np.ndarray  # [n] int64, the piece of text that each token is of
    layers: tuple[int, ...]  # of the branches, ascending
    num_layers: int  # of the model

    def __post_init__(self) -> None:
        shape = self.confidence.shape
        others = (self.agrees.shape, self.losses.shape)
        if len(shape) != 2 or shape[0] != len(self.layers) or others != (shape, shape) or shape[1] < 1:
            raise HeteroError(
                f"held-out tables of shapes {list(shape)}, {list(others[0])} and {list(others[1])} are none of "
                f"{len(self.layers)} branches; all must be [branches, tokens]."
            )
        if self.windows.shape != shape[1:]:
            raise HeteroError(f"held-out tables of {shape[1]} tokens come with the windows of {self.windows.size}.")
        if not ((self.confidence > 0) & (self.confidence <= 1)).all():
            raise HeteroError("a held-out confidence lies outside (0, 1]; train the branches again.")

    @property
    def tokens(self) -> int:
        """n."""
        return self.confidence.shape[1]

    def taken(self, thresholds: Sequence[float]) -> np.ndarray:
        """[n] the branch at which each token exits, B for none."""
        taken = np.full(self.tokens, len(self.layers))
        for number in reversed(range(len(self.layers))):
            if thresholds[number] < 1.0:
                taken[self.confidence[number] >= np.float32(thresholds[number])] = number
        return taken

    def point(self, thresholds: Sequence[float], agreement: float | None = None) -> OperatingPoint:
        """What thresholds give on these tokens, under the name of the `agreement` that was asked for (None: theirs)."""
        taken = self.taken(thresholds)
        share = np.bincount(taken, minlength=len(self.layers) + 1) / self.tokens
        depth = float(share @ np.array([*self.layers, self.num_layers]))
        found = self.agreement(taken) if agreement is None else agreement
        return OperatingPoint(found, tuple(thresholds), depth, tuple(share.tolist()))

    def agreement(self, taken: np.ndarray) -> float:
        """Of all tokens, the share that has the first choice of full depth where each leaves at its branch `taken`."""
        return float(self._right(taken).mean())

    def assured(self, taken: np.ndarray) -> float:
        """The agreement less its margin: windows count, not tokens, as those of one are alike. The agreement where all
        are of one."""
        right = self._right(taken)
        sizes, sums = np.bincount(self.windows), np.bincount(self.windows, weights=right)
        agreement, count = float(right.mean()), int((sizes > 0).sum())
        if count == 1:
            return agreement
        variance = count / (count - 1) * float(np.square(sums - agreement * sizes).sum()) / self.tokens**2
        return agreement - _MARGIN * math.sqrt(variance)

    def loss(self, thresholds: Sequence[float]) -> float:
        """Nats a token above full depth's loss on the text."""
        every = np.concatenate([self.losses, np.zeros((1, self.tokens), np.float32)])  # [B + 1, n]
        return float(every[self.taken(thresholds), np.arange(self.tokens)].mean(dtype=np.float64))

    def _right(self, taken: np.ndarray) -> np.ndarray:
        """[n]: whether each token has the first choice of full depth at its branch."""
        found: np.ndarray = self._agreeing()[taken, np.arange(self.tokens)]
        return found

    def _agreeing(self) -> np.ndarray:
        """[B + 1, n]: by branch, then at full depth, which always agrees."""
        return np.concatenate([self.agrees, np.ones((1, self.tokens), bool)])


@dataclass(frozen=True)
class Weights:
    """What is read of a model beside its layers, in layers: for each branch that is asked, and by its own head for a
    token that runs all layers."""

    branches: tuple[float, ...]
    head: float


def calibrate(
    held_out: HeldOut, grid: Sequence[float] = GRID, weights: Weights | None = None
) -> tuple[OperatingPoint, ...]:
    """One row for each agreement of the grid, which ascends below 1, and the row of agreement 1, where none exits.

    Thresholds of a row minimise what a token reads, layers and `weights` (None: layers alone), plus a price for each
    disagreement (a Lagrangian, by coordinate descent: every step is the exact best for one branch); the price is the
    lowest that reaches the agreement with a margin. Then each branch in turn takes the disagreements that are left."""
    search = _Search(held_out, weights or Weights((0.0,) * len(held_out.layers), 0.0))
    never = held_out.point([1.0] * len(held_out.layers), 1.0)
    return (*(held_out.point(search.cheapest(agreement), agreement) for agreement in grid), never)


class _Search:
    def __init__(self, held_out: HeldOut, weights: Weights) -> None:
        self._held_out, self._asked = held_out, np.array([*weights.branches, 0.0])  # [B + 1]
        sure = np.minimum(held_out.confidence, _MOST)
        self._order = np.argsort(-sure, axis=1, kind="stable")  # [B, n], surest first
        self._sure = sure
        self._read = np.array([*held_out.layers, held_out.num_layers + weights.head])  # [B + 1], where a token ends
        self._wrong = ~held_out._agreeing()  # [B + 1, n]

    def cheapest(self, agreement: float) -> list[float]:
        """Of the thresholds found that reach the agreement, those with the least to read."""
        best = [1.0] * len(self._held_out.layers)
        least = self.read(best)
        low, high = 0.0, np.log1p(_DEAREST)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            thresholds = self._descended([1.0] * len(best), price=np.expm1(middle))
            taken = self._held_out.taken(thresholds)
            if self._held_out.assured(taken) < agreement:
                low = middle
                continue
            high = middle
            if (found := self.read(thresholds)) < least:
                best, least = thresholds, found
        # What no price reaches: disagreements that are still allowed, branch by branch.
        taken = self._held_out.taken(best)
        margin = self._held_out.agreement(taken) - self._held_out.assured(taken)
        more = self._descended(best, most=int((1.0 - agreement - margin) * self._held_out.tokens + 1e-9))
        return more if self._held_out.assured(self._held_out.taken(more)) >= agreement else best

    def read(self, thresholds: Sequence[float]) -> float:
        """By a token, in layers, on the mean."""
        return float(self._onward(0, thresholds)[self._held_out.taken(thresholds)].mean())

    def _onward(self, number: int, thresholds: Sequence[float]) -> np.ndarray:
        """[B + 1]: what a token has read where it ends, with the branches from `number` on that it was asked at."""
        asked = np.where(np.append(np.asarray(thresholds) < 1.0, False), self._asked, 0.0)
        asked[:number] = 0.0
        return self._read + np.cumsum(asked)

    def _descended(self, thresholds: list[float], price: float = 0.0, most: int | None = None) -> list[float]:
        """Each branch's best threshold in turn, until none changes: at a `price` of a disagreement, or with at `most`
        so many."""
        thresholds = list(thresholds)
        for _ in range(_SWEEPS):
            before = list(thresholds)
            for number in reversed(range(len(thresholds))):
                thresholds[number] = self._best_threshold(number, thresholds, price, most)
            if thresholds == before:
                break
        return thresholds

    def _best_threshold(self, number: int, thresholds: list[float], price: float, most: int | None) -> float:
        """Of one branch while the others keep theirs."""
        later = self._held_out.taken([*[1.0] * (number + 1), *thresholds[number + 1 :]])  # [n]
        earlier = self._held_out.taken([*thresholds[:number], *[1.0] * (len(thresholds) - number)])
        order = self._order[number]
        order = order[earlier[order] == len(thresholds)]  # those that reach this branch
        if not order.size:
            return thresholds[number]
        without = np.where(earlier == len(thresholds), later, earlier)  # [n], where all leave if none does here
        saved = self._onward(number + 1, thresholds)[later[order]] - self._read[number]
        wrong = self._wrong[number][order].astype(np.int64) - self._wrong[later[order], order]
        wrongs = np.cumsum(wrong)
        gain = np.cumsum(saved) - price * wrongs - self._asked[number] * len(order)
        if most is not None:
            others = int(self._wrong[without, np.arange(len(without))].sum())
            gain[others + wrongs > most] = -np.inf
        sure = self._sure[number][order]
        ends = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))  # equally sure tokens go together
        best = ends[np.argmax(gain[ends])]
        return float(sure[best]) if gain[best] > 0 else 1.0
