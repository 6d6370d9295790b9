"""How many rows each compressed head of a request keeps: the one place where lengths become caps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hetero_sglang.memory.layout import HeadLayout
from hetero_sglang.policy.base import Policy

ROOMY = 2  # times its sinks and ring: a head of as many rows has as many to choose as it always holds


@dataclass(frozen=True)
class CapRule:
    """Caps of a request from its prompt length and the length it may grow to.

    A prompt shorter than `dense_below` tokens keeps every row until it has that many, so requests that stay
    shorter are exact; a longer one keeps `fraction * final` rows per head. `reserve` bounds how much of
    max_new_tokens is reserved ahead (SGLang's own clip, managers/schedule_policy.py). What a policy's index takes
    comes out of a head's rows.
    """

    policy: Policy
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
        return [
            min(final, max(least, math.ceil(f * final - 1e-9) - self._index(prompt, final, f)))
            for f in self.layout.fractions
        ]

    def index_rows(self, prompt: int, final: int, caps: list[int]) -> list[int]:
        """Rows of each head's index; a head that keeps every token needs none."""
        return [
            self._index(prompt, final, f) if cap < final else 0
            for f, cap in zip(self.layout.fractions, caps, strict=True)
        ]

    def _index(self, prompt: int, final: int, fraction: float) -> int:
        return self.policy.index_rows(prompt, final, fraction, self.window) if fraction < 1 else 0

    def ring(self, cap: int) -> int:
        """How many of a head's `cap` rows hold its most recent tokens once it is full."""
        return cap - self.sink if self.policy.recent_only else min(cap, self.window)

    def pages(self, rows: list[int]) -> list[int]:
        """Hot pages that hold each head's rows."""
        return [-(-count // self.page_size) for count in rows]

    def held(self, prompt: int, final: int) -> int:
        """Hot pages of a working set made for `final` tokens, index included."""
        caps = self.caps(prompt, final)
        return sum(self.pages(caps)) + sum(self.pages(self.index_rows(prompt, final, caps)))

    def demand(self, prompt: int, max_new: int) -> int:
        """Hot pages a request holds from its start to its end."""
        return self.held(prompt, self.final_length(prompt, max_new))


def default_dense_below(fractions: tuple[float, ...], sink: int, window: int) -> int:
    """Smallest power of two (at least 512) at which every head is roomy."""
    length = 512
    poorest = min(fractions, default=1.0)
    while poorest * length < ROOMY * (sink + window) and length < 1 << 20:
        length *= 2
    return length
