r"""Chain questions: "\nQuestion: Noka 3?\nAnswer:" asks for three entries, following each entry's next name.

The count is one token that the tokenizer already has (entries' numbers have three digits, so " 2" to " 16" mean
nothing else), while " +3" would be three. It stands at a fixed distance before the answer, so that how far an
answer has come can be read off its distance to the count alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hetero_sglang.errors import HeteroError

from .language import Language
from .mixed_document import Link, MixedDocument
from .question import MAX_NAMES, Question
from .token_table import MAX_COUNT, MIN_COUNT, count_id
from .vocabulary import NAMES


@dataclass(frozen=True)
class ChainQuestion(Question):
    """`names` holds the first name alone; the answer has `count` entries, the first one's included."""

    count: int

    @property
    def asked(self) -> str:
        """What stands between "Question:" and "?"."""
        return f"{self.names[0]} {self.count}"

    @property
    def max_answer_tokens(self) -> int:
        """Tokens of a full answer: name, number, and a comma or the newline, per entry."""
        return 3 * self.count


def chain_question(language: Language, start: str, count: int) -> ChainQuestion:
    """Ask for the `count` entries from `start` on. Raises HeteroError for a word that is no name, or the count."""
    if start not in NAMES:
        raise HeteroError(f"{start!r} is no name of the language: take names from document.links.")
    ids = [*language.ask_open, language.token[" " + start], count_id(language, count), *language.ask_close]
    return ChainQuestion((start,), language.decode(ids), ids, language.token["\n"], count)


def ask_chain(language: Language, document: MixedDocument, seed: int, count: int) -> ChainQuestion:
    """Ask for `count` entries from a random link on, of a ring that has as many.

    Raises HeteroError if no ring has.
    """
    starts = [name for name in document.links if _ring(document, name) >= count]
    if not starts or not MIN_COUNT <= count <= MAX_COUNT:
        raise HeteroError(
            f"A chain of {count} entries was asked for: pass {MIN_COUNT} to {MAX_COUNT}, and no more than the "
            "document's longest chain has."
        )
    return chain_question(language, starts[np.random.default_rng(seed).integers(len(starts))], count)


def ask_updated(language: Language, document: MixedDocument, seed: int, names: int = MAX_NAMES) -> Question:
    """Ask for `names` different entries that were stated more than once. Raises HeteroError if it has fewer."""
    updated = [name for name in document.entries if name in document.updated]
    if not 1 <= names <= min(MAX_NAMES, len(updated)):
        raise HeteroError(
            f"A question of {names} updated names was asked for: pass 1 to {MAX_NAMES}, and no more than the "
            f"document's {len(updated)}."
        )
    picked = np.random.default_rng(seed).choice(updated, size=names, replace=False)
    return language.question([str(name) for name in picked])


def chain_entries(document: MixedDocument, start: str, count: int) -> list[Link]:
    """The `count` pairs of name and number from `start` on. Raises HeteroError if `start` is no link."""
    if start not in document.links:
        raise HeteroError(f"The document has no chain entry {start}: take names from document.links.")
    pairs, name = [], start
    for _ in range(count):
        number, following = document.links[name]
        pairs.append((name, number))
        name = following
    return pairs


def chain_answer_ids(language: Language, document: MixedDocument, question: ChainQuestion) -> list[int]:
    """The right answer's ids, the closing newline included."""
    ids: list[int] = []
    for pair in chain_entries(document, question.names[0], question.count):
        ids += [*(language.token[" " + word] for word in pair), language.token[","]]
    return [*ids[:-1], language.token["\n"]]


def chain_answer(language: Language, document: MixedDocument, question: ChainQuestion) -> str:
    r"""The right answer: " Noka 482, Lofa 917, Mire 230\n"."""
    return language.decode(chain_answer_ids(language, document, question))


def _ring(document: MixedDocument, start: str) -> int:
    """Links of the ring that `start` stands in."""
    name, size = document.links[start][1], 1
    while name != start:
        name, size = document.links[name][1], size + 1
    return size
