"""Working sets of requests that have ended, kept while nobody needs their pages: a next turn goes on with one."""

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count

import numpy as np

from hetero_sglang.cache.working_set import WorkingSet

_SAMPLE = 64  # tokens compared before all are


@dataclass(eq=False)
class Parked:
    """A working set, and the tokens [n] int64 that it was made of: all that it has rows of, but perhaps a last one.

    `salt`: what else SGLang's radix tree tells prefixes apart by; `pinned`: rows stay, which others have shared."""

    key: int
    ws: WorkingSet
    tokens: np.ndarray
    salt: Hashable
    pinned: bool = False

    def shared(self, tokens: np.ndarray) -> int:
        """How many of `tokens` [n] int64, from the first on, it has rows of."""
        count = min(len(self.tokens), len(tokens), self.ws.length)
        other = np.flatnonzero(self.tokens[:count] != tokens[:count])
        return int(other[0]) if other.size else count


class Parking:
    """In order of their ends; the first goes first."""

    def __init__(self, slack: int) -> None:
        """`slack`: tokens at a set's end that a request need not share with it."""
        self.slack = slack
        self.sets: dict[int, Parked] = {}
        self._keys = count()

    def add(self, ws: WorkingSet, tokens: np.ndarray, salt: Hashable) -> Parked:
        """`ws` belongs to nobody from now on."""
        parked = Parked(next(self._keys), ws, tokens, salt)
        self.sets[parked.key] = parked
        return parked

    def take(self, parked: Parked) -> WorkingSet:
        """Somebody goes on with it, or its pages are needed."""
        return self.sets.pop(parked.key).ws

    def find(self, tokens: np.ndarray, salt: Hashable) -> Parked | None:
        """The set that most of `tokens` [n] int64 goes on from: they share all of its tokens but the last `slack`.

        Of two it is the one that shares more, as its own and not another branch's of the same conversation."""
        best, most = None, 1
        for parked in self.sets.values():
            least = parked.ws.length - self.slack
            if parked.salt != salt or not 0 < least < len(tokens) or least > len(parked.tokens):
                continue
            some = slice(max(0, least - _SAMPLE), least)
            if (parked.tokens[some] == tokens[some]).all() and (shared := parked.shared(tokens)) >= max(least, most):
                best, most = parked, shared
        return best
