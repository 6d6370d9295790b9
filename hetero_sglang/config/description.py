"""The half of a policy that is pure arithmetic: what is kept, how much, and when it is chosen again."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar


class Refresh(Enum):
    """When a request's selected rows are chosen again after its prompt."""

    NEVER = "never"
    DRIFT = "drift"  # when a pivot's attention has moved
    STEP = "step"  # every decode step, from the policy's index
    LAZY = "lazy"  # every decode step, from each head's key index: what it wants most and lacks comes in


class Unit:
    """What a policy's index is made of: `span` consecutive tokens, in `rows` hot rows."""

    span: ClassVar[int]
    rows: ClassVar[int]


@dataclass(frozen=True)
class Description:
    """What sizes and caps follow from; policy/base.py adds how rows are chosen."""

    name: ClassVar[str]
    refresh: ClassVar[Refresh] = Refresh.NEVER
    roles: ClassVar[bool] = False  # heads differ by a head profile; else all are compressed alike
    recent_only: ClassVar[bool] = False  # whatever is not a sink is the most recent tokens
    index: ClassVar[Unit | None] = None

    def max_candidates(self, length: int, count: int, window: int) -> int:
        """How many of a prompt's `length` tokens `candidates` may return at most."""
        return length

    def index_rows(self, prompt: int, final: int, fraction: float, window: int) -> int:
        """Hot rows of one head's index for a prompt that may grow to `final` tokens and keeps `fraction` of them."""
        if self.index is None:
            return 0
        listed = self.max_candidates(prompt, int(fraction * final), window) + (final - prompt)
        return -(-listed // self.index.span) * self.index.rows

    @property
    def index_share(self) -> float:
        """Hot rows of the index per indexed token: below it, a keep ratio leaves no room for any token."""
        return self.index.rows / self.index.span if self.index else 0.0
