"""One document asked by many users at the same time, each about other entries."""

from __future__ import annotations

import numpy as np

from benchmarks.recall import Language, default_entries

from ..questions import ask_names, pick
from ..script import Script
from .task import Task


def build(language: Language, length: int, seed: int, users: int, names: int) -> Script:
    """`users` questions of `names` names; the first user brings the document, the others come all at once."""
    document = language.document(seed, length, default_entries(length))
    rng = np.random.default_rng(seed)
    asked = [pick(rng, list(document.entries), names) for _ in range(users)]
    steps = [[ask_names(language, document, each, document.ids)] for each in asked]
    return Script(steps, language.token["\n"], together=True)


TASK = Task("shared", build, points=({"users": 16, "names": 4},), reduced=({"users": 3, "names": 4},))
