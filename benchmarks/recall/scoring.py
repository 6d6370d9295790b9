"""Counting the entries that an answer gets right."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hetero_sglang.errors import HeteroError

from .document import Document

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Score:
    """Entries answered with exactly their two numbers, of the entries asked for."""

    right: int
    total: int

    def __add__(self, other: Score) -> Score:
        return Score(self.right + other.right, self.total + other.total)

    def __str__(self) -> str:
        return f"{self.right}/{self.total}"


def score(answer_text: str, document: Document, names: Iterable[str]) -> Score:
    """Count the asked names that the answer's line follows with exactly their two numbers.

    Punctuation and order do not matter. A name's first statement counts, so listing guesses gains nothing.
    Raises HeteroError for a name that the document does not have.
    """
    asked = dict.fromkeys(names)
    if missing := [name for name in asked if name not in document.entries]:
        raise HeteroError(f"The document has no entry {missing[0]}: score only names that it has.")
    stated = _statements(answer_text)
    right = sum(stated.get(name) == document.entries[name] for name in asked)
    return Score(right, len(asked))


def score_chain(answer_text: str, expected: Sequence[tuple[str, str]]) -> Score:
    """Count the entries of a chain's answer that are right, each in its place.

    `expected` are pairs of name and number in order, as from `chain_entries`; the answer's i-th name must be the
    i-th of them, followed by exactly its number. Punctuation does not matter, and nor does what follows.
    """
    words = _WORD.findall(answer_text.partition("\n")[0])
    pairs: list[tuple[str, tuple[str, ...]]] = []
    for word in words:
        if word[0].isalpha():
            pairs.append((word, ()))
        elif word[0].isdigit() and pairs:
            name, numbers = pairs[-1]
            pairs[-1] = (name, (*numbers, word))
    right = sum(said == (name, (number,)) for said, (name, number) in zip(pairs, expected, strict=False))
    return Score(right, len(expected))


def _statements(answer_text: str) -> dict[str, tuple[str, ...]]:
    """Map each word of the first line to the numbers that directly follow its first mention."""
    words = _WORD.findall(answer_text.partition("\n")[0])
    stated: dict[str, tuple[str, ...]] = {}
    for at, word in enumerate(words):
        if not word[0].isalpha() or word in stated:
            continue
        end = at + 1
        while end < len(words) and words[end][0].isdigit():
            end += 1
        stated[word] = tuple(words[at + 1 : end])
    return stated
