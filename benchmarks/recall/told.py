"""What a training sample has told up to some place, and so what may be asked there."""

from __future__ import annotations

import random

from .statements import Statements
from .token_table import MIN_COUNT, TokenTable


class Told:
    """Grows statement by statement; names are indices into NAMES, everything else token ids."""

    def __init__(self, statements: Statements, table: TokenTable) -> None:
        self.count = 0
        self.listed: list[int] = []  # names of entries that are no links
        self.updated: list[int] = []  # those stated more than once so far
        self.latest: dict[int, tuple[int, int]] = {}  # their two numbers
        self.links: dict[int, tuple[int, int]] = {}  # number, next name (an index)
        self._starts: list[int] = []
        # Plain lists: looking single items up in arrays is several times slower.
        self._names = statements.names.tolist()
        self._first = table.numbers[statements.first].tolist()
        self._second = table.seconds(statements).tolist()
        self._next = statements.second.tolist()
        self._links = statements.links.tolist()

    def __len__(self) -> int:
        return len(self._names)

    def tell(self, count: int) -> None:
        """Go on to where `count` statements have been told."""
        for at in range(self.count, count):
            name = self._names[at]
            if self._links[at]:
                self.links[name] = self._first[at], self._next[at]
                self._starts.append(name)
                continue
            if name not in self.latest:
                self.listed.append(name)
            elif name not in self.updated:
                self.updated.append(name)
            self.latest[name] = self._first[at], self._second[at]
        self.count = max(self.count, count)

    def chain(self, chance: random.Random, most: int) -> list[int]:
        """Up to `most` names from a random link on, once round its ring at most; none if its next is not told."""
        if not self._starts:
            return []
        start = name = chance.choice(self._starts)
        names: list[int] = []
        while len(names) < most and name in self.links and not (names and name == start):
            names.append(name)
            name = self.links[name][1]
        return names if len(names) >= MIN_COUNT else []
