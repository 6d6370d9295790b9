"""A document: entries hidden in filler."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .vocabulary import NAMES, NUMBERS

Numbers = tuple[str, str]
Entries = dict[str, Numbers]
ENTRY_TOKENS = 5  # " Entry", name, two numbers, "."
DENSE_FILLER = 8  # filler tokens per entry among dense entries: the model confuses entries without any
MAX_ENTRIES = min(len(NAMES), len(NUMBERS))


@dataclass(frozen=True)
class Document:
    """A context without a question.

    `ids` starts with the bos token, which `text` leaves out; `entries` maps each name to its two numbers, in
    order of appearance.
    """

    text: str
    ids: list[int]
    entries: Entries


def draw_entries(rng: np.random.Generator, count: int) -> Entries:
    """Return `count` entries with distinct names and distinct first numbers."""
    names = rng.permutation(len(NAMES))[:count]
    first = rng.permutation(len(NUMBERS))[:count]
    second = rng.integers(0, len(NUMBERS), count)
    return {NAMES[n]: (NUMBERS[a], NUMBERS[b]) for n, a, b in zip(names, first, second, strict=True)}


def draw_gaps(rng: np.random.Generator, tokens: int, entries: int, dense: bool = False) -> list[int]:
    """Return the filler tokens before each entry and, last, after all of them; they sum to `tokens`.

    Entries fall uniformly over the filler or, if `dense`, over a short stretch of it, at a random place.
    """
    stretch = min(tokens, DENSE_FILLER * entries) if dense else tokens
    start = rng.integers(0, tokens - stretch + 1) if dense else 0
    places = start + np.sort(rng.integers(0, stretch + 1, entries))
    return np.diff(places, prepend=0, append=tokens).tolist()
