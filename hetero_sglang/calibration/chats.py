"""Chats as texts: JSON lines as for fine-tuning, of which the model has to say the assistant's words alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from hetero_sglang.calibration.checkpoint import Checkpoint
from hetero_sglang.calibration.documents import Document, read_text
from hetero_sglang.errors import HeteroError

SUFFIX = ".jsonl"


def from_chats(path: str | Path, checkpoint: Checkpoint) -> Document:
    """The chats of a file, one behind the other: an object {"messages": [{"role": .., "content": ..}, ..]} a line.

    Messages are put together by the model's own template, or as they are where it has none. What ends a reply is said
    too. Raises HeteroError for a file that cannot be read and for a line that is no such object."""
    text = read_text(path)
    tokens, said = list[int](), list[bool]()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        messages = _messages(line, f"line {number} of {path}")
        templated = checkpoint.templated(messages)
        for piece, spoken in _pieces(messages, templated):
            ids = checkpoint.encode(piece)
            ends = templated is not None and bool(said) and said[-1] and not spoken
            tokens += ids
            said += [spoken or (ends and not at) for at in range(len(ids))]
    if not any(said):
        raise HeteroError(f"no chat in {path} has a reply of the assistant's; give chats with some.")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Document(Path(path).name, digest, tuple(tokens), tuple(said))


def _messages(line: str, where: str) -> list[dict[str, str]]:
    try:
        messages = json.loads(line)["messages"]
        found = [{"role": each["role"], "content": each["content"]} for each in messages]
    except (ValueError, LookupError, TypeError):
        found = []
    if not found or not all(isinstance(value, str) for each in found for value in each.values()):
        raise HeteroError(f'{where} is no chat; write {{"messages": [{{"role": "user", "content": "..."}}, ...]}}.')
    return found


def _pieces(messages: list[dict[str, str]], templated: list[str] | None) -> Iterator[tuple[str, bool]]:
    """Text in turn, of messages or of what a template has made of them; whether the model has said it."""
    if templated is None:
        yield from ((each["content"], each["role"] == "assistant") for each in messages)
        return
    for message, before, content in zip(messages, templated[::2], templated[1::2], strict=False):
        if message["role"] == "assistant":
            yield before, False
            yield content, True
        else:
            yield before + content, False
    yield templated[-1], False
