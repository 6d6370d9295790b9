"""Texts of a wanted length, and which documents they may be made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hetero_sglang.errors import HeteroError

from .sources import KINDS, Source

CALIBRATION, HELD_OUT = "calibration", "held out"
_CALIBRATED = 0x60  # of 256 documents
_WINDOW, _LONG_WORD = 8, 7  # words that make a mark, and letters of the word that it begins with
_REPEATED = 0.2  # share of a document's marks in those before it
_GAP = "\n\n"
_CHARACTERS = 5  # of a token, about; so long a document is a text by itself


@dataclass(frozen=True)
class Text:
    """Token ids out of one document, or of several where one is too short; `names` say which.

    The first `prompt` are prefilled, the others forced; `counts` says which of these are scored, where not all are.
    """

    kind: str
    names: tuple[str, ...]
    text: str
    ids: tuple[int, ...]
    prompt: int
    counts: tuple[bool, ...] | None = None

    @property
    def name(self) -> str:
        """Kind and first document: "code, argparse.py"."""
        return f"{self.kind}, {self.names[0]}"

    @property
    def told(self) -> dict[str, Any]:
        """What a result says of it: the digest tells whether two machines measured the same."""
        digest = hashlib.sha256(repr(self.ids).encode()).hexdigest()[:16]
        return {"kind": self.kind, "documents": list(self.names), "sha256": digest}


def side(kind: str, name: str) -> str:
    """Calibration or held out: decided by the name alone, so that further documents move none."""
    return CALIBRATION if _digest(kind, name)[0] < _CALIBRATED else HELD_OUT


def distinct(sources: Iterable[Source]) -> list[Source]:
    """By name, without those that mostly repeat what others say: packages share their licences."""
    seen: set[int] = set()
    kept: list[Source] = []
    for source in sorted(sources, key=lambda source: (source.name, source.text)):
        marks = _marks(source.text)
        if marks and len(marks & seen) <= _REPEATED * len(marks):
            kept.append(source)
            seen |= marks
    return kept


def chosen(kind: str, which: str, sources: Iterable[Source]) -> list[Source]:
    """The documents of one side, in an order that no name or length decides."""
    ours = (source for source in distinct(sources) if side(kind, source.name) == which)
    return sorted(ours, key=lambda source: _digest(kind, source.name))


def compose(
    kind: str, documents: Sequence[Source], tokenizer: Any, tokens: int, count: int, prompt: int = 0
) -> list[Text]:
    """`count` texts of `tokens` tokens, no document in two; long documents first, alone, from their beginning.

    Raises HeteroError if there are not so many.
    """
    enough = _CHARACTERS * tokens
    waiting = sorted(documents, key=lambda document: len(document.text) < enough)
    made: list[Text] = []
    while len(made) < count:
        names: list[str] = []
        text = ""
        ids: list[int] = []
        while len(ids) < tokens:
            if not waiting:
                raise HeteroError(
                    f"The {kind} texts here are enough for {len(made)} of {tokens} tokens, not {count}: ask for fewer "
                    "(--texts), shorter ones (--prompt) or other kinds (--kinds)."
                )
            document = waiting.pop(0)
            names.append(document.name)
            text += (_GAP if text else "") + document.text[: 8 * tokens]
            ids = tokenizer(text)["input_ids"]
        made.append(Text(kind, tuple(names), text, tuple(ids[:tokens]), prompt))
    return made


def texts(kinds: Sequence[str], which: str, tokenizer: Any, tokens: int, count: int, prompt: int = 0) -> list[Text]:
    """`count` texts of each kind. Raises HeteroError as `compose` does."""
    return [
        text
        for kind in dict.fromkeys(kinds)
        for text in compose(kind, chosen(kind, which, KINDS[kind]()), tokenizer, tokens, count, prompt)
    ]


def _digest(kind: str, name: str) -> bytes:
    return hashlib.sha256(f"{kind}/{name}".encode()).digest()


def _marks(text: str) -> set[int]:
    """Hashes of runs of words, however they are wrapped."""
    words = text.lower().split()
    return {hash(tuple(words[at : at + _WINDOW])) for at, word in enumerate(words) if len(word) >= _LONG_WORD}
