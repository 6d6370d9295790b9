"""Context-dense: at least 150 entries that touch each other, so that no token near them can be spared."""

from __future__ import annotations

import numpy as np

from benchmarks.recall import Language, mixed_document
from benchmarks.recall.document import ENTRY_TOKENS

from ..questions import ask_names, pick
from ..script import Script
from .task import Task

_FEWEST, _MOST = 150, 400  # the model was trained on no more


def build(language: Language, length: int, seed: int, questions: int, names: int) -> Script:
    """Entries touch and fill the document; past 400 of them, the rest of it is filler around them.

    `questions` of `names` names are each asked on their own.
    """
    count = max(_FEWEST, min(_MOST, (length - 1) // ENTRY_TOKENS))
    document = mixed_document(language, seed, length, entries=count, gap=0)
    rng = np.random.default_rng(seed)
    asked = [pick(rng, list(document.entries), names) for _ in range(questions)]
    return Script([[ask_names(language, document, each, document.ids)] for each in asked], language.token["\n"])


TASK = Task("dense", build, points=({"questions": 4, "names": 8},), reduced=({"questions": 1, "names": 8},))
