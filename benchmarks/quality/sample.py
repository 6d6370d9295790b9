"""A sample: one task at one length, point and seed, on a server."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from benchmarks.recall import Language, Score

from .client import Client
from .converse import Exchange, hold
from .counters import deltas
from .script import Script
from .tasks import Point, Task


@dataclass(frozen=True)
class Sample:
    """Built when first needed; the same for every cell."""

    task: Task
    length: int
    seed: int
    point: Point
    language: Language = field(repr=False)

    @cached_property
    def script(self) -> Script:
        """What is sent; documents of one task, length and seed are alike at every point."""
        mixed = zlib.crc32(f"{self.task.name} {self.length} {self.seed}".encode())
        return self.task.build(self.language, self.length, mixed, **self.point)

    @property
    def row(self) -> dict[str, Any]:
        """What the report groups by."""
        return {"task": self.task.name, "length": self.length, "seed": self.seed, "point": dict(self.point)}

    @cached_property
    def definition(self) -> dict[str, Any]:
        """What its key is made of."""
        return {**self.row, "script": self.script.digest}

    @property
    def tokens(self) -> tuple[int, int]:
        """Of all prompts, without what is cached, and of all answers."""
        return self.script.prompt_tokens, self.script.answer_tokens

    def run(self, client: Client) -> dict[str, Any]:
        """Hold the conversations on a flushed cache; scores, answers, counters and times (seconds) as JSON values."""
        client.flush()
        before = client.stats()
        begin = time.monotonic()
        exchanges = hold(client, self.script)
        seconds = time.monotonic() - begin
        after = client.stats()
        score = sum((exchange.score for exchange in exchanges), Score(0, 0))
        return {
            "right": score.right,
            "total": score.total,
            "score": score.right / score.total,
            "seconds": round(seconds, 3),
            "counters": deltas(before, after),
            "integrity": [(stats or {}).get("integrity") for stats in (before, after)],
            "exchanges": [_shown(exchange) for exchange in exchanges],
        }


def _shown(exchange: Exchange) -> dict[str, Any]:
    meta = exchange.reply.meta
    shown = {
        "expected": exchange.step.expected,
        "got": exchange.reply.text,
        "right": exchange.score.right,
        "total": exchange.score.total,
        **{name: meta.get(name) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")},
        "seconds": meta.get("e2e_latency"),
    }
    return shown if exchange.trace is None else {**shown, "trace": exchange.trace}
