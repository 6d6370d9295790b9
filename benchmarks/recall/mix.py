"""What training samples hold: the share of each kind, and how many entries of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hetero_sglang.errors import HeteroError

from .statements import Statements

TEXT, PLAIN, CHAIN, UPDATE = range(4)  # what a token belongs to: no answer, or an answer of this kind
KINDS = ("plain", "chain", "update")  # names of kinds 1, 2, 3
_ALSO = 0.5  # chance of each other kind beside a sample's main one
_LONGEST_RING = 24
_MOST, _MOST_DENSE = 200, 400


@dataclass(frozen=True)
class Mix:
    """Shares of the questions' kinds, relative to each other, and of the hard cases, each from 0 to 1.

    `long` is the share of list questions with 9 to 64 names, where there is room; `dense` the share of samples
    whose entries stand in one stretch, touching or nearly so.
    """

    plain: float = 0.3
    chain: float = 0.45
    update: float = 0.25
    long: float = 0.1
    dense: float = 0.25

    def __post_init__(self) -> None:
        if min(self.shares) < 0 or sum(self.shares) <= 0:
            raise HeteroError(f"Shares {self.shares} of the kinds: pass none below 0, and one above.")
        if not (0 <= self.long <= 1 and 0 <= self.dense <= 1):
            raise HeteroError(f"Shares long={self.long} and dense={self.dense}: pass 0 to 1.")

    @property
    def shares(self) -> tuple[float, float, float]:
        """Of plain, chain, update."""
        return self.plain, self.chain, self.update

    def size(self, rng: np.random.Generator, length: int, dense: bool) -> int:
        """A random number of statements for a sample of `length` tokens: 3 to about length/16, more if dense."""
        most = min(_MOST_DENSE, length // 10) if dense else min(_MOST, length // 16)
        return int(rng.integers(3, max(5, most)))

    def statements(self, rng: np.random.Generator, count: int) -> Statements:
        """Draw `count` statements: one main kind, by its share, and each other one in every second sample."""
        share = np.array(self.shares)
        held = rng.random(3) < _ALSO
        held[_pick(rng, share)] = True
        share = np.where(held, share, 0)
        plain, linked, restated = (int(n) for n in rng.multinomial(count, share / share.sum()))
        if linked == 1:
            plain, linked = plain + 1, 0
        if restated == 1:
            plain, restated = plain + 1, 0
        return Statements.draw(rng, plain, _rings(rng, linked), _repeats(rng, restated))


def _pick(rng: np.random.Generator, share: np.ndarray) -> int:
    return int(np.searchsorted(np.cumsum(share), rng.random() * share.sum(), side="right"))


def _rings(rng: np.random.Generator, links: int) -> list[int]:
    """Split `links` (none, or 2 or more) into rings of 2 to 25."""
    rings: list[int] = []
    while links:
        ring = min(links, int(rng.integers(2, _LONGEST_RING + 1)))
        ring += links - ring == 1
        rings.append(ring)
        links -= ring
    return rings


def _repeats(rng: np.random.Generator, statements: int) -> np.ndarray:
    """Split `statements` (none, or 2 or more) over names that are each stated two to four times."""
    if not statements:
        return np.zeros(0, dtype=np.int64)
    names = int(rng.integers(-(-statements // 3), max(2, statements // 2 + 1)))
    repeats = np.full(names, statements // names)
    repeats[: statements % names] += 1
    return repeats
