"""Calibration documents: token ids cut to a length, and the hash of the text they came from."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetero_sglang.calibration.samples import sample
from hetero_sglang.calibration.text import Text
from hetero_sglang.errors import HeteroError

Encode = Callable[[str], list[int]]
Chat = Callable[[list[dict[str, str]]], str]  # messages as the model's own template has them
_PER_ENTRY, _MOST_ENTRIES = 128, 1000  # tokens of text to each entry
_ASKED, _AFTER = 8, 64  # entries that are named again, and tokens of text after that
_BODY, _REST = "<<TEXT>>", "<<REST>>"


@dataclass(frozen=True)
class Document:
    """One prompt. `source` is a file name or the seed of the built-in text; `said`: which of its tokens a model has to
    say, the others are given to it (none told: all)."""

    source: str
    sha256: str
    tokens: tuple[int, ...]
    said: tuple[bool, ...] = ()

    @property
    def about(self) -> dict[str, Any]:
        """As a profile's provenance has it."""
        return {"source": self.source, "sha256": self.sha256, "tokens": len(self.tokens)}


def built_in(seed: int, length: int, encode: Encode, chat: Chat) -> Document:
    """`length` tokens of a chat: about a text of the seed's kind with entries in it, some are asked for and named, and
    the text goes on. Raises HeteroError where there is no room for that."""
    text = Text(seed)
    entries = [text.entry() for _ in range(min(max(_ASKED, length // _PER_ENTRY), _MOST_ENTRIES))]
    question, answer = text.question(entries, _ASKED)
    whole = chat([
        {"role": "user", "content": f"{_BODY}\n\n{question}"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "Go on."},
        {"role": "assistant", "content": _REST},
    ])  # fmt: skip
    before, _, after = whole.partition(_BODY)
    begin, middle = encode(before), encode(after.partition(_REST)[0])
    facts = [encode(f" Entry {entry}.") for entry in entries]
    room = length - len(begin) - len(middle) - sum(map(len, facts)) - _AFTER
    if room < 0:
        raise HeteroError(f"the built-in text needs more than {length} tokens; choose a greater `--length`.")
    pieces, body = sample(seed), list[int]()
    while len(body) < room + _AFTER:
        body += encode(next(pieces))
    tokens = begin
    for index, fact in enumerate(facts):
        start, stop = (room * i // len(facts) for i in (index, index + 1))
        tokens += body[start:stop] + fact
    tokens += middle + body[room : room + _AFTER]
    digest = hashlib.sha256(repr(tokens).encode()).hexdigest()
    return Document(f"built-in, seed {seed}", digest, tuple(tokens))


def from_file(path: str | Path, lengths: list[int], encode: Encode, start: list[int]) -> list[Document]:
    """The beginning of a UTF-8 file at each length it reaches; whole once when it is shorter than all.

    Raises HeteroError as `read_text` does."""
    text = read_text(path)
    tokens = (*start, *encode(text))
    reached = [n for n in sorted(set(lengths)) if n <= len(tokens)] or [len(tokens)]
    digest = hashlib.sha256(text.encode()).hexdigest()
    return [Document(Path(path).name, digest, tokens[:n]) for n in reached]


def read_text(path: str | Path) -> str:
    """A UTF-8 file. Raises HeteroError for one that is absent, empty or no text."""
    try:
        raw = Path(path).read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise HeteroError(f"the text {path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise HeteroError(f"the text {path} is not UTF-8 (byte {error.start}); give plain text files.") from None
    if not text.strip():
        raise HeteroError(f"the text {path} is empty; give files with some thousand tokens of text.")
    if "\0" in text:
        raise HeteroError(f"the text {path} holds zero bytes, so it is no plain text; give plain text files.")
    return text
