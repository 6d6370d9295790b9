"""A line of a data file as an item of the matrix."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from typing import Any

from ..client import Client
from ..counters import deltas
from .lines import Line
from .prompt import Prompt


@dataclass(frozen=True)
class FileItem:
    """`text` is what is sent: the prompt, cut in its middle if it was too long."""

    line: Line
    prompt: Prompt
    text: str
    answer_tokens: int
    chat: bool  # as a user's message, with the model's chat template

    @property
    def row(self) -> dict[str, Any]:
        """Lengths are rounded to a power of two, so that there is something to average."""
        length = 1 << round(math.log2(self.prompt.length))
        point = {"file": self.line.path.name, "line": self.line.number}
        return {"task": self.prompt.task, "length": length, "seed": 0, "point": point}

    @property
    def definition(self) -> dict[str, Any]:
        """What its key is made of."""
        told = "\0".join([self.text, *self.prompt.answers])
        digest = hashlib.sha256(told.encode()).hexdigest()[:16]
        return {**self.row, "text": digest, "answer_tokens": self.answer_tokens, "chat": self.chat}

    @property
    def tokens(self) -> tuple[int, int]:
        """Roughly, of prompt and answer; only the server has a tokenizer."""
        return len(self.text) // 4, self.answer_tokens

    def run(self, client: Client) -> dict[str, Any]:
        """Ask and score; times in seconds, JSON values."""
        client.flush()
        before = client.stats()
        begin = time.monotonic()
        said, usage = client.complete(self.text, self.answer_tokens, self.chat)
        seconds = time.monotonic() - begin
        after = client.stats()
        score = self.prompt.metric(said, self.prompt.answers)
        shown = {"expected": list(self.prompt.answers), "got": said, **usage}
        return {
            "score": score,
            "seconds": round(seconds, 3),
            "counters": deltas(before, after),
            "integrity": [(stats or {}).get("integrity") for stats in (before, after)],
            "exchanges": [shown],
        }
