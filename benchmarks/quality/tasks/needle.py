"""One entry in a document of filler, at a given depth: the needle in a haystack."""

from __future__ import annotations

import numpy as np

from benchmarks.recall import Document, Language
from benchmarks.recall.document import ENTRY_TOKENS, draw_entries

from ..questions import ask_names
from ..script import Script
from .task import Task


def build(language: Language, length: int, seed: int, depth: float) -> Script:
    """`depth` 0 puts the entry first, 1 last."""
    rng = np.random.default_rng(seed)
    entries = draw_entries(rng, 1)
    filler = length - 1 - ENTRY_TOKENS
    before = round(depth * filler)
    ids = [language.bos, *language.filler.cut(rng, before)]
    for name, numbers in entries.items():
        ids += language.entry_ids(name, numbers)
    ids += language.filler.cut(rng, filler - before)
    step = ask_names(language, Document("", ids, entries), list(entries), ids)
    return Script([[step]], language.token["\n"])


TASK = Task(
    "needle",
    build,
    points=tuple({"depth": tenths / 10} for tenths in range(11)),
    reduced=tuple({"depth": depth} for depth in (0.1, 0.5, 0.9)),
)
