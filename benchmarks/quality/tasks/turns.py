"""Interleaved turns: a document that comes in parts, with questions between them about all parts so far."""

from __future__ import annotations

from itertools import islice

import numpy as np

from benchmarks.recall import Document, Language, default_entries
from benchmarks.recall.document import draw_entries

from ..questions import ask_names, pick
from ..script import Script, Step
from ..text import spread_text
from .task import Task


def build(language: Language, length: int, seed: int, parts: int, names: int) -> Script:
    """`parts` parts of `length` tokens in all, each followed by a question of `names` names."""
    rng = np.random.default_rng(seed)
    per_part = max(names, default_entries(length) // parts)
    drawn = draw_entries(rng, per_part * parts)
    document = Document("", [], drawn)
    left = iter(drawn.items())
    steps: list[Step] = []
    for part in range(parts):
        tokens = (length - 1) * (part + 1) // parts - (length - 1) * part // parts
        ids = spread_text(language, rng, dict(islice(left, per_part)), tokens)
        context = ids if part else [language.bos, *ids]
        told = list(drawn)[: per_part * (part + 1)]
        steps.append(ask_names(language, document, pick(rng, told, names), context))
    return Script([steps], language.token["\n"])


TASK = Task("turns", build, points=({"parts": 6, "names": 8},), reduced=({"parts": 3, "names": 6},))
