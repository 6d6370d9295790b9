"""What came of a program: its answers beside the truth, and what its prompts were made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One thing asked for, what the program said and what it should have said."""

    asked: str
    said: str
    truth: str

    @property
    def right(self) -> bool:
        return self.said == self.truth

    def __str__(self) -> str:
        return f"{self.asked}: {self.said}" + ("" if self.right else f", but it is {self.truth}")


@dataclass
class Outcome:
    """Filled while a program runs; tokens are those of its generations' prompts."""

    task: str
    answers: list[Answer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def right(self) -> int:
        return sum(answer.right for answer in self.answers)

    @property
    def total(self) -> int:
        return len(self.answers)

    def count(self, meta: Mapping[str, Any]) -> None:
        """Add a generation by its meta_info."""
        self.prompt_tokens += meta["prompt_tokens"]
        self.cached_tokens += meta["cached_tokens"]

    def __str__(self) -> str:
        lines = [self.task, *(f"  {line}" for line in (*self.answers, *self.notes))]
        cached = f"{self.cached_tokens} of {self.prompt_tokens} prompt tokens cached"
        return "\n".join([*lines, f"  {self.right}/{self.total} right; {cached}"])
