"""The language's words as arrays of token ids, for drawing long texts fast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hetero_sglang.errors import HeteroError

from .document import ENTRY_TOKENS
from .language import Language
from .statements import Statements
from .vocabulary import NAMES, NUMBERS

MIN_COUNT, MAX_COUNT = 2, 16  # entries of a chain's answer: one token each, " 2" to " 16"


@dataclass(frozen=True)
class TokenTable:
    """Ids by index into NAMES and NUMBERS, and by count."""

    names: np.ndarray  # [1024] int32
    numbers: np.ndarray  # [900] int32
    counts: np.ndarray  # [17] int32, by count; below MIN_COUNT unused
    entry: int
    stop: int
    comma: int
    newline: int

    @classmethod
    def build(cls, language: Language) -> TokenTable:
        """Look all words up. Raises HeteroError if the tokenizer splits a count."""
        token = language.token
        counts = [0] * MIN_COUNT + [count_id(language, count) for count in range(MIN_COUNT, MAX_COUNT + 1)]
        return cls(
            np.array([token[" " + name] for name in NAMES], dtype=np.int32),
            np.array([token[" " + number] for number in NUMBERS], dtype=np.int32),
            np.array(counts, dtype=np.int32),
            *(token[word] for word in (" Entry", ".", ",", "\n")),
        )

    def rows(self, statements: Statements) -> np.ndarray:
        """Ids of the statements, one a row: [S, 5] int32."""
        rows = np.empty((len(statements), ENTRY_TOKENS), dtype=np.int32)
        rows[:, 0], rows[:, -1] = self.entry, self.stop
        rows[:, 1] = self.names[statements.names]
        rows[:, 2] = self.numbers[statements.first]
        rows[:, 3] = self.seconds(statements)
        return rows

    def seconds(self, statements: Statements) -> np.ndarray:
        """Ids of the statements' second words, the next name or a number: [S] int32."""
        numbers = self.numbers[np.where(statements.links, 0, statements.second)]
        return np.where(statements.links, self.names[statements.second], numbers)


def count_id(language: Language, count: int) -> int:
    """Id of a count. Raises HeteroError if it is not 2 to 16, or no single token."""
    if not MIN_COUNT <= count <= MAX_COUNT:
        raise HeteroError(f"A chain of {count} entries was asked for: pass {MIN_COUNT} to {MAX_COUNT}.")
    ids = language.encode(f" {count}")
    if len(ids) != 1:
        raise HeteroError(f"The tokenizer splits ' {count}': use the recall model's own tokenizer.")
    return ids[0]
