"""Users whose documents hold numbers of their own: a number in an answer says whose document it came from."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from benchmarks.recall import Document, Language
from benchmarks.recall.document import ENTRY_TOKENS, Entries, Numbers, draw_gaps
from benchmarks.recall.vocabulary import NAMES, NUMBERS
from hetero_sglang.errors import HeteroError

GROUPS = 4  # of users whose documents begin alike
SHARED = 4  # entries of such a beginning
OWN = 12  # entries of a user's own
POOL = 24  # names that all users take theirs from: what leaks has the name that is asked for
OPENING = 160  # tokens of a beginning
LENGTHS = 100, 350  # of a user's own part, from and to
MOST_USERS = len(NUMBERS) // 6 - GROUPS

_STATED = re.compile(r"(?:(\w+) )?\b(\d{3})(?= (\d{3})\b)")


@dataclass(frozen=True)
class User:
    """Somebody with a document. Its first tokens, with the entries of the names `opening`, others have as well."""

    number: int
    document: Document
    opening: tuple[str, ...]


class Crowd:
    """All users of a run. No number is in the own parts of two documents."""

    def __init__(self, language: Language, users: int, seed: int) -> None:
        """Raises HeteroError for more users than there are numbers for."""
        if not 1 <= users <= MOST_USERS:
            raise HeteroError(f"{users} users asked for: the language has numbers for 1 to {MOST_USERS}.")
        self.language = language
        rng = np.random.default_rng(seed)
        shares = np.array_split(rng.permutation(len(NUMBERS)), GROUPS + users)
        names = [NAMES[i] for i in rng.permutation(len(NAMES))]
        commons, pool = names[: GROUPS * SHARED], names[GROUPS * SHARED :][:POOL]
        self.owners: dict[Numbers, tuple[str, str]] = {}  # of an entry's: whose it is, and its name
        self.users: list[User] = []
        openings = []
        for group in range(GROUPS):
            table = _table(commons[group * SHARED :][:SHARED], shares[group])
            self.owners |= {numbers: (f"group {group}", name) for name, numbers in table.items()}
            openings.append((table, [language.bos, *self._write(rng, table, OPENING - 1)]))
        for number in range(users):
            picked = [pool[i] for i in rng.permutation(POOL)[:OWN]]
            own = _table(picked, shares[GROUPS + number])
            self.owners |= {numbers: (f"user {number}", name) for name, numbers in own.items()}
            table, opening = openings[number % GROUPS]
            ids = opening + self._write(rng, own, int(rng.integers(*LENGTHS)))
            document = Document(language.decode(ids[1:]), ids, table | own)
            self.users.append(User(number, document, tuple(table)))

    def foreign(self, user: User, text: str, asked: bool = True) -> list[str]:
        """What `text` says of other users' documents: any entry of theirs, and in the answer to a question, its first
        line, their numbers behind any name. A model that makes numbers up says the first once in 10 million times."""
        line = len(text.partition("\n")[0]) if asked else 0
        own, found = set(user.document.entries.values()), []
        for match in _STATED.finditer(text):
            numbers = match[2], match[3]
            owner, name = self.owners.get(numbers, ("", ""))
            if owner and numbers not in own and (match[1] == name or match.start() < line):
                found.append(f"user {user.number} was told {match[0].strip()} {match[3]}, which is {owner}'s {name}")
        return found

    def _write(self, rng: np.random.Generator, table: Entries, tokens: int) -> list[int]:
        """So many tokens of filler and entries."""
        *gaps, tail = draw_gaps(rng, tokens - ENTRY_TOKENS * len(table), len(table))
        ids: list[int] = []
        for gap, name in zip(gaps, table, strict=True):
            ids += self.language.filler.cut(rng, gap) + self.language.entry_ids(name, table[name])
        return ids + self.language.filler.cut(rng, tail)


def _table(names: list[str], share: np.ndarray) -> Entries:
    """Entries of these names, as far as the share has two numbers for each."""
    numbers = [NUMBERS[i] for i in share]
    return {name: (a, b) for name, a, b in zip(names, numbers[::2], numbers[1::2], strict=False)}
