"""Questions of up to 64 names, for long generations; the mixed sampler trains them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetero_sglang.errors import HeteroError

from .document import Document
from .language import Language
from .question import Question
from .vocabulary import NAMES

MAX_LONG_NAMES = 64


def long_question(language: Language, names: Sequence[str]) -> Question:
    """Ask for 1 to 64 `names`, in this order; it reads like a short question. Raises HeteroError for others."""
    if not 1 <= len(names) <= MAX_LONG_NAMES:
        raise HeteroError(f"A question of {len(names)} names was asked for: pass 1 to {MAX_LONG_NAMES}.")
    if unknown := [name for name in names if name not in NAMES]:
        raise HeteroError(f"{unknown[0]!r} is no name of the language: take names from document.entries.")
    ids = language.question_ids(names)
    return Question(tuple(names), language.decode(ids), ids, language.token["\n"])


def ask_long(language: Language, document: Document, seed: int, names: int = MAX_LONG_NAMES) -> Question:
    """Ask for `names` different entries of `document`, 1 to 64. Raises HeteroError if it has fewer."""
    if not 1 <= names <= min(MAX_LONG_NAMES, len(document.entries)):
        raise HeteroError(
            f"A question of {names} names was asked for: pass 1 to {MAX_LONG_NAMES}, and no more than the "
            f"document's {len(document.entries)} entries."
        )
    picked = np.random.default_rng(seed).choice(list(document.entries), size=names, replace=False)
    return long_question(language, [str(name) for name in picked])
