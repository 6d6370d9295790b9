"""Statements: the entries of a text in order of appearance, plain ones, restated ones and links of chains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hetero_sglang.errors import HeteroError

from .document import ENTRY_TOKENS
from .vocabulary import NAMES, NUMBERS


@dataclass(frozen=True)
class Statements:
    """S statements; a plain one is " Entry Noka 482 917.", a link " Entry Noka 482 Lofa.".

    A name that is stated again has new numbers; the latest count. Links close into rings, so that each leads
    on to a next one and a question may start at any of them.
    """

    names: np.ndarray  # [S] int64, indices into NAMES
    first: np.ndarray  # [S] int64, indices into NUMBERS, all different
    second: np.ndarray  # [S] int64, indices into NAMES where `links`, else into NUMBERS
    links: np.ndarray  # [S] bool

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def draw(
        cls, rng: np.random.Generator, plain: int, rings: Sequence[int] = (), restated: Sequence[int] = ()
    ) -> Statements:
        """Draw `plain` plain entries, one ring per item of `rings` with that many links, and one name per item
        of `restated` with that many statements, all in random order.

        Raises HeteroError for more than the language has words for.
        """
        linked, again = sum(rings), sum(restated)
        count, distinct = plain + linked + again, plain + linked + len(restated)
        if not 1 <= count <= len(NUMBERS) or distinct > len(NAMES):
            raise HeteroError(f"{count} entries asked for: a text has 1 to {len(NUMBERS)}, restated ones included.")
        pool = rng.permutation(len(NAMES))[:distinct]
        chained = pool[plain : plain + linked]
        second = rng.integers(0, len(NUMBERS), count)
        second[plain : plain + linked] = chained[_followers(rings)]
        links = np.zeros(count, dtype=bool)
        links[plain : plain + linked] = True
        names = np.concatenate((pool[: plain + linked], np.repeat(pool[plain + linked :], restated)))
        order = rng.permutation(count)
        first = rng.permutation(len(NUMBERS))[:count]
        return cls(names[order], first, second[order], links[order])


def _followers(rings: Sequence[int]) -> np.ndarray:
    """For links that stand ring after ring: where the next of each stands. [sum(rings)]"""
    follower = np.arange(1, sum(rings) + 1)
    ends = np.cumsum(np.array(rings, dtype=np.int64))
    follower[ends - 1] = ends - np.array(rings, dtype=np.int64)
    return follower


def spread(rng: np.random.Generator, filler: int, statements: int, stretch: int | None = None) -> np.ndarray:
    """Filler tokens before each statement and, last, after all: [S + 1] int64, sum `filler`.

    Statements fall uniformly over all the filler or, with `stretch`, over that many tokens of it at a random
    place; 0 makes them touch.
    """
    width = filler if stretch is None else min(stretch, filler)
    start = rng.integers(0, filler - width + 1)
    places = start + np.sort(rng.integers(0, width + 1, statements))
    return np.diff(places, prepend=0, append=filler)


def lay_out(gaps: np.ndarray, rows: np.ndarray, filler: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Set statements between stretches of filler.

    `gaps` [S + 1] as from `spread`, `rows` [S, 5] ids of the statements, `filler` [sum of gaps] ids. Returns the
    text's ids [F + 5 S] and where each statement ends [S].
    """
    starts = np.cumsum(gaps[:-1]) + ENTRY_TOKENS * np.arange(len(rows))
    told = (starts[:, None] + np.arange(ENTRY_TOKENS)).ravel()
    ids = np.empty(len(filler) + rows.size, dtype=np.int32)
    between = np.ones(len(ids), dtype=bool)
    between[told] = False
    ids[told] = rows.ravel()
    ids[between] = filler
    return ids, starts + ENTRY_TOKENS
