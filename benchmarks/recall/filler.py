"""Filler: an endless text of sentences that say nothing about any entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .vocabulary import (
    ADJECTIVES,
    ADVERBS,
    FILLER_SEED,
    FILLER_SENTENCES,
    NOUNS,
    PREPOSITIONS,
    VERBS,
)

_MARGIN = 40  # tokens kept free after a cut; part of how the model's training text was cut


@dataclass(frozen=True)
class Filler:
    """One fixed text and where its sentences start."""

    ids: np.ndarray  # [F] int32
    starts: np.ndarray  # [S] int64, ascending

    @classmethod
    def build(cls, token: Mapping[str, int]) -> Filler:
        """Write the fixed text; `token` maps each word, with its leading space, and "." to its id."""
        rng = np.random.default_rng(FILLER_SEED)
        ids: list[int] = []
        starts: list[int] = []
        for _ in range(FILLER_SENTENCES):
            starts.append(len(ids))
            ids += [token[word] for word in _sentence(rng)]
        return cls(np.array(ids, dtype=np.int32), np.array(starts, dtype=np.int64))

    def cut(self, rng: np.random.Generator, tokens: int) -> list[int]:
        """Return `tokens` ids from a random sentence's start on; the last sentence may be cut."""
        start = int(self.starts[rng.integers(0, len(self.starts) - 1)])
        if start + tokens + _MARGIN >= len(self.ids):
            start = 0
        return self.ids.take(np.arange(start, start + tokens), mode="wrap").tolist()

    def cuts(self, rng: np.random.Generator, tokens: np.ndarray) -> np.ndarray:
        """Cut a text of each length in `tokens` [G], as `cut` does: their ids in one row, [sum] int32."""
        starts = self.starts[rng.integers(0, len(self.starts) - 1, len(tokens))]
        starts[starts + tokens + _MARGIN >= len(self.ids)] = 0
        shift = starts - (np.cumsum(tokens) - tokens)  # from a place in the row to a place in the text
        return self.ids.take(np.repeat(shift, tokens) + np.arange(tokens.sum()), mode="wrap")


def _sentence(rng: np.random.Generator) -> list[str]:
    def pick(words: tuple[str, ...]) -> str:
        return " " + words[rng.integers(0, len(words))]

    # The order of the draws fixes the text, so it must not change.
    words = [" The", pick(ADJECTIVES), pick(NOUNS), pick(VERBS), " the", pick(NOUNS)]
    if rng.random() < 0.5:
        words += [pick(PREPOSITIONS), " the", pick(ADJECTIVES), pick(NOUNS)]
    if rng.random() < 0.4:
        words.append(pick(ADVERBS))
    return [*words, "."]
