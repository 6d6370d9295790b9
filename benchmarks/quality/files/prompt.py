"""What a line of a data file asks, and how its answer is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .lines import Line
from .metrics import Metric


@dataclass(frozen=True)
class Prompt:
    """`length` is the data's own count, tokens in RULER and words in LongBench."""

    task: str
    text: str
    answers: Sequence[str]
    metric: Metric
    answer_tokens: int
    length: int


def length_of(line: Line, text: str) -> int:
    """The line's `length`, or the words of its text."""
    length = line.fields.get("length")
    return length if isinstance(length, int) and length > 0 else max(1, len(text.split()))
