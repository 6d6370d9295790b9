"""Texts of the recall language, as programs put them together; the server's tokenizer makes whole tokens of them."""

from __future__ import annotations

import numpy as np

from benchmarks.recall import Language

BEGIN = "<s>"
NUMBERS = r" \d{3} \d{3}"  # of an entry, as a regular expression


def ask(language: Language, *names: str) -> str:
    r"""The text "\nQuestion: Noka, Lofa?\nAnswer:"."""
    return language.question(names).text


def page(language: Language, seed: int, entries: dict[str, str], gap: int) -> str:
    """Entries, by name their numbers as the model writes them (" 482 917"), with `gap` filler tokens around each."""
    rng = np.random.default_rng(seed)
    told = "".join(
        f"{language.decode(language.filler.cut(rng, gap))} Entry {name}{numbers}." for name, numbers in entries.items()
    )
    return told + language.decode(language.filler.cut(rng, gap))
