"""Steps that ask for entries of a document."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.recall import (
    Document,
    Language,
    MixedDocument,
    ask_chain,
    chain_answer,
    chain_entries,
    long_question,
    score,
    score_chain,
)
from hetero_sglang.errors import HeteroError

from .script import Step


def ask_names(
    language: Language, document: Document, names: Sequence[str], context: Sequence[int], traced: bool = False
) -> Step:
    """Ask for these entries of `document` in one question, after `context`."""
    question = long_question(language, names)
    expected = language.answer(document, names).rstrip("\n")
    grade = partial(score, document=document, names=tuple(names))
    return Step(context, question.ids, expected, question.max_answer_tokens, grade, traced)


def ask_links(language: Language, document: MixedDocument, seed: int, count: int, context: Sequence[int]) -> Step:
    """Ask for `count` entries of a chain, after `context`."""
    question = ask_chain(language, document, seed, count)
    expected = chain_answer(language, document, question).rstrip("\n")
    grade = partial(score_chain, expected=chain_entries(document, question.names[0], count))
    return Step(context, question.ids, expected, question.max_answer_tokens, grade)


def pick(rng: np.random.Generator, names: Sequence[str], count: int) -> list[str]:
    """`count` different ones of `names`. Raises HeteroError if there are fewer."""
    if count > len(names):
        raise HeteroError(f"{count} names of {len(names)} entries were asked for: use longer documents.")
    return [names[at] for at in rng.permutation(len(names))[:count]]
