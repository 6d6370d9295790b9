"""Questions of up to 64 names, for long generations; the mixed sampler trains them."""

from __future__ import annotations

from collections.abc import Sequence

from .document import Document
from .language import Language
from .question import Question

MAX_LONG_NAMES = 64


def long_question(language: Language, names: Sequence[str]) -> Question:
    """Ask for 1 to 64 `names`, in this order; it reads like a short question. Raises HeteroError for others."""
    return language.question(names, MAX_LONG_NAMES)


def ask_long(language: Language, document: Document, seed: int, names: int = MAX_LONG_NAMES) -> Question:
    """Ask for `names` different entries of `document`, 1 to 64. Raises HeteroError if it has fewer."""
    return language.ask(document, seed, names, MAX_LONG_NAMES)
