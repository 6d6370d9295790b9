"""Calibration documents: token ids cut to a length, and the hash of the text they came from."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetero_sglang.calibration.text import Text
from hetero_sglang.errors import HeteroError

Encode = Callable[[str], list[int]]
_PER_ENTRY, _MOST_ENTRIES = 48, 1000  # tokens of text to each entry
_ROUNDS, _ASKED = 2, 8  # questions already answered, and names in the one left open


@dataclass(frozen=True)
class Document:
    """One prompt. `source` is a file name or the seed of the built-in text."""

    source: str
    sha256: str
    tokens: tuple[int, ...]

    @property
    def about(self) -> dict[str, Any]:
        """As a profile's provenance has it."""
        return {"source": self.source, "sha256": self.sha256, "tokens": len(self.tokens)}


def built_in(seed: int, length: int, encode: Encode, start: list[int]) -> Document:
    """`length` tokens of prose with entries that ends with a question, its answer left to the model."""
    text = Text(seed)
    entries = [text.entry() for _ in range(min(max(_ASKED, length // _PER_ENTRY), _MOST_ENTRIES))]
    answered = "".join("".join(text.question(entries, _ASKED // 2)) for _ in range(_ROUNDS))
    ending = encode(answered + text.question(entries, _ASKED)[0])
    room = length - len(ending) - len(start)
    facts = [encode(f" Entry {entry}.") for entry in entries]
    prose_room = room - sum(map(len, facts))
    if prose_room < 0:
        raise HeteroError(f"the built-in text needs more than {length} tokens; choose a greater `--length`.")
    prose: list[int] = []
    while len(prose) < prose_room:
        prose += encode("".join(text.sentence() for _ in range(8)))
    body: list[int] = []
    for index, fact in enumerate(facts):
        begin, end = (prose_room * i // len(facts) for i in (index, index + 1))
        body += prose[begin:end] + fact
    tokens = (*start, *body, *ending)
    digest = hashlib.sha256(repr(tokens).encode()).hexdigest()
    return Document(f"built-in, seed {seed}", digest, tokens)


def from_file(path: str | Path, lengths: list[int], encode: Encode, start: list[int]) -> list[Document]:
    """The beginning of a UTF-8 file at each length it reaches; whole once when it is shorter than all.

    Raises HeteroError for a file that is absent, empty or no text."""
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
    tokens = (*start, *encode(text))
    reached = [n for n in sorted(set(lengths)) if n <= len(tokens)] or [len(tokens)]
    digest = hashlib.sha256(raw).hexdigest()
    return [Document(Path(path).name, digest, tokens[:n]) for n in reached]
