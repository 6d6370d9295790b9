"""How many rows each compressed head of a request keeps: the one place where lengths become caps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hetero_sglang.memory.layout import HeadLayout


@dataclass(frozen=True)
class CapRule:
    """Caps of a request from its prompt length and the length it may grow to.

    A prompt shorter than `dense_below` tokens keeps every row until it has that many, so requests that stay
    shorter are exact; a longer one keeps `fraction * final` rows per head. `reserve` bounds how much of
    max_new_tokens is reserved ahead (SGLang's own clip, managers/schedule_policy.py).
    """

    layout: HeadLayout
    page_size: int
    sink: int
    window: int
    dense_below: int
    reserve: int = 4096

    def final_length(self, prompt: int, max_new: int) -> int:
        """Tokens a request is expected to reach: what its working set is sized for.

        One more than the prompt at least: with overlap scheduling a finished request still runs one step.
        """
        return prompt + max(1, min(max_new, self.reserve))

    def caps(self, prompt: int, final: int) -> list[int]:
        """Rows per compressed head of the rank, in head-number order."""
        dense = min(final, self.dense_below) if prompt < self.dense_below else 0
        least = max(dense, min(final, self.sink + self.window + 1))
        return [min(final, max(least, math.ceil(f * final - 1e-9))) for f in self.layout.fractions]

    def pages(self, caps: list[int]) -> list[int]:
        """Hot pages each head's cap takes."""
        return [-(-cap // self.page_size) for cap in caps]

    def demand(self, prompt: int, max_new: int) -> int:
        """Hot pages a request holds from its start to its end."""
        return sum(self.pages(self.caps(prompt, self.final_length(prompt, max_new))))


def default_dense_below(fractions: tuple[float, ...], sink: int, window: int) -> int:
    """Smallest power of two (at least 512) at which every head's cap is twice its sinks and window."""
    length = 512
    poorest = min(fractions, default=1.0)
    while poorest * length < 2 * (sink + window) and length < 1 << 20:
        length *= 2
    return length
