"""What became of one fault, counted."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.faults.load import Answer

_MOST_SAID = 5


@dataclass
class Tally:
    """`failures`: requests that ended without an answer, by the reason they were given; `worst_seconds`: the longest
    from the last request's end until all was as before, or had left."""

    times: int = 0
    held: int = 0
    requests: int = 0
    answered: int = 0
    wrong: int = 0  # answered with other tokens than those of a server left alone
    hung: int = 0
    leaks: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    worst_seconds: float = 0.0
    said: list[str] = field(default_factory=list)

    def add(
        self, answers: list[Answer], expected: list[Answer], broken: list[str], leaked: list[str], seconds: float = 0.0
    ) -> None:
        """One more time. `broken`: sentences on what else was promised; `leaked`: what was left behind."""
        pairs = list(zip(answers, expected, strict=True)) if answers else []
        wrong = [number for number, (got, wanted) in enumerate(pairs) if got.ids and got.ids != wanted.ids]
        hung = [answer for answer in answers if not answer.ids and not answer.reason]
        broken = [*broken, *leaked]
        broken += [f"request {n}: {pairs[n][0].ids}, not {pairs[n][1].ids}" for n in wrong]
        broken += [f"{len(hung)} requests hung"] if hung else []
        self.times += 1
        self.held += not broken
        self.requests += len(answers)
        self.answered += sum(bool(answer.ids) for answer in answers)
        self.wrong += len(wrong)
        self.hung += len(hung)
        self.leaks += len(leaked)
        self.failures.update(re.sub(r"\d+ tokens", "N tokens", each.reason) for each in answers if each.reason)
        self.worst_seconds = round(max(self.worst_seconds, seconds), 1)
        self.said = (self.said + [f"time {self.times}: {sentence}" for sentence in broken])[:_MOST_SAID]

    def as_dict(self) -> dict[str, Any]:
        """For a result's row."""
        return {**vars(self), "failures": dict(self.failures)}
