"""Training samples: documents with questions in between and at the end, and the loss weight of each token."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hetero_sglang.errors import HeteroError

from .document import ENTRY_TOKENS, MAX_ENTRIES, Entries, draw_entries, draw_gaps
from .language import Language
from .question import MAX_NAMES

ANSWER_WEIGHT = 1.0
TEXT_WEIGHT = 0.05  # filler, entries and questions: enough to learn the language's form
MIN_LENGTH = 32
_TURNS_SHARE = 0.5  # samples with questions between the entries
_TURN_RATE = 0.15  # questions per entry in those


@dataclass(frozen=True)
class Sample:
    """Token ids and the weight of predicting each of them; bos has weight 0."""

    ids: np.ndarray  # [L] int64
    weights: np.ndarray  # [L] float32


@dataclass(frozen=True)
class Sampler:
    """Draws samples from the distribution that the recall model was trained on."""

    language: Language

    def sample(self, rng: np.random.Generator, length: int, entries: int | None = None) -> Sample:
        """Return one sample of exactly `length` tokens; its last question or answer may be cut.

        `entries` defaults to a random number, 3 to about length/24 and below 200. Raises HeteroError for a
        length under 32 or a number of entries that the language lacks.
        """
        if length < MIN_LENGTH:
            raise HeteroError(f"A sample of {length} tokens was asked for: use {MIN_LENGTH} or more.")
        if entries is None:
            entries = int(rng.integers(3, max(5, min(200, length // 24))))
        if not 1 <= entries <= MAX_ENTRIES:
            raise HeteroError(f"{entries} entries asked for: a sample has 1 to {MAX_ENTRIES}.")
        table = draw_entries(rng, entries)
        # Short samples are half questions, or they would teach little; long ones a sixth.
        tail = max(32, length // 2 if length <= 1024 else length // 6)
        filler = max(0, length - tail - ENTRY_TOKENS * entries - 10)
        *gaps, rest = draw_gaps(rng, filler, entries)
        turns = rng.random() < _TURNS_SHARE
        page = _Page(self.language, rng, table)
        for seen, (gap, name) in enumerate(zip(gaps, table, strict=True), start=1):
            page.fill(gap)
            page.add(self.language.entry_ids(name, table[name]), TEXT_WEIGHT)
            if turns and seen >= 3 and rng.random() < _TURN_RATE:
                page.ask(seen, int(rng.integers(1, 4)))
        page.fill(rest)
        while len(page.ids) <= length:
            page.ask(entries, int(rng.integers(1, MAX_NAMES + 1)))
        return Sample(np.array(page.ids[:length], dtype=np.int64), np.array(page.weights[:length], dtype=np.float32))


@dataclass
class _Page:
    """A sample being written."""

    language: Language
    rng: np.random.Generator
    table: Entries
    ids: list[int] = field(init=False)
    weights: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.ids, self.weights = [self.language.bos], [0.0]

    def add(self, ids: list[int], weight: float) -> None:
        self.ids += ids
        self.weights += [weight] * len(ids)

    def fill(self, tokens: int) -> None:
        if tokens:
            self.add(self.language.filler.cut(self.rng, tokens), TEXT_WEIGHT)

    def ask(self, seen: int, names: int) -> None:
        """Ask for some of the first `seen` entries and answer."""
        known = list(self.table)[:seen]
        picks = self.rng.choice(seen, size=min(names, seen), replace=False)
        asked = [known[pick] for pick in picks]
        self.add(self.language.question_ids(asked), TEXT_WEIGHT)
        self.add(self.language.statement_ids(self.table, asked), ANSWER_WEIGHT)
