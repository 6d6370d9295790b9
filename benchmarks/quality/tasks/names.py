"""Questions of one to eight names, each asked on its own about one document."""

from __future__ import annotations

import numpy as np

from benchmarks.recall import Language, default_entries

from ..questions import ask_names, pick
from ..script import Script
from .task import Task


def build(language: Language, length: int, seed: int, names: list[int]) -> Script:
    """`names` are the numbers of names of the questions."""
    document = language.document(seed, length, default_entries(length))
    rng = np.random.default_rng(seed)
    asked = [pick(rng, list(document.entries), count) for count in names]
    return Script([[ask_names(language, document, each, document.ids)] for each in asked], language.token["\n"])


TASK = Task("names", build, points=({"names": [1, 2, 3, 4, 5, 6, 7, 8]},), reduced=({"names": [1, 8]},))
