"""How requests ended, counted."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

_KEPT = 20  # of the sentences about what went wrong


class End(StrEnum):
    """The last word about a request; the first three are as it should be."""

    ANSWERED = "answered"
    ABORTED = "aborted"  # as somebody asked
    DISCONNECTED = "disconnected"  # its client left
    HUNG = "hung"  # nothing more came for too long
    FAILED = "failed"  # refused, cut short, or aborted although nobody asked


GOOD = (End.ANSWERED, End.ABORTED, End.DISCONNECTED)


@dataclass
class Tally:
    """Of one run. A request is sent, and ends once."""

    sent: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of those answered
    tokens: int = 0
    right: int = 0  # entries of whole answers
    asked: int = 0
    foreign: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # what went wrong with requests that hung or failed
    aborted_all: float = -math.inf  # when everybody was last aborted, of time.monotonic; inf: just now

    def begins(self, kind: str, fate: str) -> float:
        """One more is sent, now."""
        self.sent += 1
        self.kinds[kind] += 1
        self.fates[fate] += 1
        return time.monotonic()

    def ended(self, end: End, began: float, said: str = "") -> None:
        """One of them has ended."""
        self.ends[end] += 1
        if end is End.ANSWERED:
            self.seconds.append(time.monotonic() - began)
        if end not in GOOD and len(self.wrong) < _KEPT:
            self.wrong.append(f"{end} after {time.monotonic() - began:.1f} s: {said}")

    @contextmanager
    def aborting(self) -> Iterator[None]:
        """Whoever has been sent by the end of it may be aborted."""
        self.aborted_all = math.inf
        try:
            yield
        finally:
            self.aborted_all = time.monotonic()

    @property
    def done(self) -> int:
        return self.ends.total()

    @property
    def under_way(self) -> int:
        return self.sent - self.done

    def line(self) -> str:
        """For a line of progress."""
        ends = ", ".join(f"{self.ends[end]} {end}" for end in End if self.ends[end] or end in GOOD)
        return f"{self.sent} sent, {ends}, {self.under_way} under way, {len(self.foreign)} foreign"

    def as_dict(self) -> dict[str, Any]:
        spread = np.percentile(self.seconds, (50, 90, 99, 100)).round(3).tolist() if self.seconds else []
        return {
            "sent": self.sent,
            "ends": {end.value: self.ends[end] for end in End},
            "kinds": dict(self.kinds),
            "fates": dict(self.fates),
            "seconds": dict(zip(("p50", "p90", "p99", "most"), spread, strict=False)),
            "output_tokens": self.tokens,
            "entries_right": self.right,
            "entries_asked": self.asked,
            "foreign": self.foreign[:_KEPT],
            "wrong": self.wrong,
        }
