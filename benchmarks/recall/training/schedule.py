"""How long to train at which sample length, and at what learning rate."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from hetero_sglang.errors import HeteroError

STAGES = "256:30,1024:20,4096:20,16384:20,32768:10"
_FLOOR = 0.02  # of the peak rate, at the end


@dataclass(frozen=True)
class Stage:
    """A sample length and where in the training it ends, as a fraction of the whole."""

    length: int
    end: float


def parse_stages(text: str) -> list[Stage]:
    """Read "256:30,1024:70": lengths and their shares of the training. Raises HeteroError for anything else."""
    try:
        pairs = [(int(length), float(share)) for length, share in (part.split(":") for part in text.split(","))]
    except ValueError as error:
        raise HeteroError(f"Stages {text!r} cannot be read: write lengths and shares like {STAGES}.") from error
    total = sum(share for _, share in pairs)
    if min(share for _, share in pairs) < 0 or total <= 0:
        raise HeteroError(f"Stages {text!r} have a share below 0, or none above: write them like {STAGES}.")
    ends = [sum(share for _, share in pairs[: at + 1]) / total for at in range(len(pairs))]
    return [Stage(length, end) for (length, _), end in zip(pairs, ends, strict=True)]


@dataclass
class Clock:
    """How far a training has come, in minutes or, if `steps` is given, in steps (which can be repeated exactly)."""

    minutes: float
    steps: int | None = None
    step: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self.began

    @property
    def fraction(self) -> float:
        """0 at the beginning, 1 at the end."""
        done = self.step / self.steps if self.steps else self.seconds / (60 * self.minutes)
        return min(1.0, done)


def rate_factor(step: int, fraction: float, warmup: int = 200) -> float:
    """Share of the peak learning rate: a linear warm-up of `warmup` steps, then half a cosine down to 2 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * fraction))
    return min(1.0, (step + 1) / warmup) * (_FLOOR + (1 - _FLOOR) * cosine)
