"""The recall language in token ids: entries such as " Entry Noka 482 917." in filler, questions and answers.

Every piece of it is made of whole tokens, so texts and ids are two spellings of one thing: joining the ids of
the parts gives the ids of the joined text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hetero_sglang.errors import HeteroError

from .document import ENTRY_TOKENS, MAX_ENTRIES, Document, Entries, Numbers, draw_entries, draw_gaps
from .filler import Filler
from .question import MAX_NAMES, Question
from .vocabulary import ADJECTIVES, ADVERBS, NAMES, NOUNS, NUMBERS, PREPOSITIONS, VERBS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FILLER_WORDS = ("The", "the", *ADJECTIVES, *NOUNS, *VERBS, *ADVERBS, *PREPOSITIONS)
_WORDS = (*(" " + word for word in (*_FILLER_WORDS, "Entry", *NAMES, *NUMBERS)), ".", ",", "\n")


@dataclass(frozen=True)
class Language:
    """The language in one tokenizer's ids; load it once, every method is pure."""

    tokenizer: Tokenizer
    bos: int
    filler: Filler
    token: dict[str, int]  # each word, with its leading space, and each mark
    ask_open: list[int]  # "\nQuestion:"
    ask_close: list[int]  # "?\nAnswer:"

    @classmethod
    def load(cls, tokenizer_path: str | Path) -> Language:
        """Load from a model's folder or its tokenizer.json.

        Raises HeteroError if there is no tokenizer, or one that splits a word of the language.
        """
        from tokenizers import Tokenizer  # the file itself: importing transformers takes seconds

        path = Path(tokenizer_path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise HeteroError(f"There is no tokenizer at {path}: pass the folder of the recall model.")
        tokenizer = Tokenizer.from_file(str(path))

        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False).ids

        token: dict[str, int] = {}
        for word in _WORDS:
            ids = encode(word)
            if len(ids) != 1:
                raise HeteroError(f"{path} splits {word!r}: use the recall model's own tokenizer.")
            token[word] = ids[0]
        bos = tokenizer.token_to_id("<s>")
        if bos is None:
            raise HeteroError(f"{path} has no <s> token: use the recall model's own tokenizer.")
        return cls(tokenizer, bos, Filler.build(token), token, encode("\nQuestion:"), encode("?\nAnswer:"))

    def document(self, seed: int, tokens: int, entries: int, dense: bool = False) -> Document:
        """Return a document of exactly `tokens` ids (bos included) with `entries` entries.

        Entries are spread uniformly over the whole of it as in training, or, if `dense`, over one short
        stretch (13 tokens per entry) at a random place. Raises HeteroError for sizes that cannot be.
        """
        if not 1 <= entries <= MAX_ENTRIES:
            raise HeteroError(f"{entries} entries asked for: a document has 1 to {MAX_ENTRIES}.")
        filler = tokens - 1 - ENTRY_TOKENS * entries
        if filler < 0:
            raise HeteroError(
                f"{entries} entries need {tokens - filler} tokens, not {tokens}: ask for a longer document."
            )
        rng = _rng(seed)
        table = draw_entries(rng, entries)
        *gaps, tail = draw_gaps(rng, filler, entries, dense)
        ids = [self.bos]
        for gap, name in zip(gaps, table, strict=True):
            ids += self.filler.cut(rng, gap)
            ids += self.entry_ids(name, table[name])
        ids += self.filler.cut(rng, tail)
        return Document(self.decode(ids[1:]), ids, table)

    def question(self, names: Sequence[str], most: int = MAX_NAMES) -> Question:
        """Ask for 1 to `most` `names`, in this order. Raises HeteroError for others."""
        if not 1 <= len(names) <= most:
            raise HeteroError(f"A question of {len(names)} names was asked for: pass 1 to {most}.")
        if unknown := [name for name in names if name not in _NAME_SET]:
            raise HeteroError(f"{unknown[0]!r} is no name of the language: take names from document.entries.")
        ids = self.question_ids(names)
        return Question(tuple(names), self.decode(ids), ids, self.token["\n"])

    def ask(self, document: Document, seed: int, names: int = 8, most: int = MAX_NAMES) -> Question:
        """Ask for `names` different entries of `document`, 1 to `most`. Raises HeteroError if it has fewer."""
        if not 1 <= names <= min(most, len(document.entries)):
            raise HeteroError(
                f"A question of {names} names was asked for: pass 1 to {most}, and no more than the "
                f"document's {len(document.entries)} entries."
            )
        picked = _rng(seed).choice(list(document.entries), size=names, replace=False)
        return self.question([str(name) for name in picked], most)

    def answer(self, document: Document, names: Iterable[str]) -> str:
        r"""Return the right answer: " Noka 482 917, Lofa 405 546\n"."""
        return self.decode(self.answer_ids(document, names))

    def answer_ids(self, document: Document, names: Iterable[str]) -> list[int]:
        """Return the right answer's ids, the closing newline included."""
        return self.statement_ids(document.entries, names)

    def entry_ids(self, name: str, numbers: Numbers) -> list[int]:
        """Ids of " Entry Noka 482 917."."""
        return [self.token[" " + word] for word in ("Entry", name, *numbers)] + [self.token["."]]

    def statement_ids(self, entries: Entries, names: Iterable[str]) -> list[int]:
        r"""Ids of " Noka 482 917, Lofa 405 546\n"."""
        ids: list[int] = []
        for name in names:
            if name not in entries:
                raise HeteroError(f"The document has no entry {name}: take names from document.entries.")
            ids += [self.token[" " + word] for word in (name, *entries[name])] + [self.token[","]]
        return [*ids[:-1], self.token["\n"]]

    def question_ids(self, names: Sequence[str]) -> list[int]:
        r"""Ids of "\nQuestion: Noka, Lofa?\nAnswer:"."""
        listed = [id_ for name in names for id_ in (self.token[","], self.token[" " + name])][1:]
        return [*self.ask_open, *listed, *self.ask_close]

    def encode(self, text: str) -> list[int]:
        """Ids of any text, without bos."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens are left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


_NAME_SET = frozenset(NAMES)


def _rng(seed: int) -> np.random.Generator:
    if seed < 0:
        raise HeteroError(f"Seed {seed} is negative: pass 0 or more.")
    return np.random.default_rng(seed)
