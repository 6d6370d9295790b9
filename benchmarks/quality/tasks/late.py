"""Late questions: thousands of unrelated tokens stand between the document and the question about it."""

from __future__ import annotations

import numpy as np

from benchmarks.recall import Document, Language, default_entries
from benchmarks.recall.document import draw_entries

from ..questions import ask_names, pick
from ..script import Script
from ..text import spread_text
from .task import Task

_DOCUMENT_SHARE = 4  # the document is a quarter of the length, the rest is filler


def build(language: Language, length: int, seed: int, names: int) -> Script:
    """One question of `names` names at the end of `length` tokens."""
    rng = np.random.default_rng(seed)
    tokens = length // _DOCUMENT_SHARE
    entries = draw_entries(rng, max(names, default_entries(tokens)))
    ids = [language.bos, *spread_text(language, rng, entries, tokens - 1), *language.filler.cut(rng, length - tokens)]
    step = ask_names(language, Document("", ids, entries), pick(rng, list(entries), names), ids)
    return Script([[step]], language.token["\n"])


TASK = Task("late", build, points=({"names": 8},), reduced=({"names": 8},), shortest=3072)
