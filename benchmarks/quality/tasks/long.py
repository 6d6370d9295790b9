"""Long generation: up to 64 entries in one answer, then a question whose answer stands in the generated text too."""

from __future__ import annotations

import numpy as np

from benchmarks.recall import Language, default_entries

from ..questions import ask_names, pick
from ..script import Script
from .task import Task

_AGAIN = 8  # names of the second question


def build(language: Language, length: int, seed: int, names: int) -> Script:
    """The second question asks again for entries of the first answer's first half, far behind the recent window."""
    document = language.document(seed, length, max(names, default_entries(length)))
    rng = np.random.default_rng(seed)
    first = pick(rng, list(document.entries), names)
    again = pick(rng, first[: names // 2], min(_AGAIN, names // 2))
    steps = [
        ask_names(language, document, first, document.ids, traced=True),
        ask_names(language, document, again, []),
    ]
    return Script([steps], language.token["\n"])


TASK = Task("long", build, points=({"names": 64},), reduced=({"names": 24},))
