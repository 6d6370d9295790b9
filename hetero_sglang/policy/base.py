"""What a KV cache policy decides; everything else (tiers, prefixes, worker, server) is shared by all of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from hetero_sglang.cache.lanes import upload
from hetero_sglang.config.description import Description, Refresh, Unit
from hetero_sglang.selection import top

__all__ = ["Index", "Policy", "Refresh"]


class Index(Unit, ABC):
    """A summary of keys that stays on the device, by which a STEP policy finds tokens again.

    It is made of units of `span` consecutive tokens, `rows` hot rows each, so its bytes come out of the working
    set's. A unit never changes once it is complete; younger tokens are in the ring (`span` is at most the window)."""

    @abstractmethod
    def build(self, k: torch.Tensor, v_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Complete units from their keys: k [C, U, span, D] -> K rows [C, U, rows, D], V rows [C, U, rows, v_dim]."""

    @abstractmethod
    def scores(
        self, q: torch.Tensor, k_rows: torch.Tensor, v_rows: torch.Tensor, scale: float,
        real: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Scores of the indexed tokens for one step's queries, comparable within a head.

        q [C, G, D], k_rows [C, U, rows, D], v_rows [C, U, rows, Dv] -> [C, U * span] float32. `real` [C, U] bool: which
        units exist, where not all do; what the others get is not read, but must not disturb."""


@dataclass(frozen=True)
class Policy(Description, ABC):
    """One way to choose which rows of a head stay on the device. Methods are pure: any device, no state.

    Heads are the compressed KV heads of one layer (C of them, each for G query heads); sinks and the most recent
    tokens are kept by all and never chosen. Shapes: q [W, C, G, D] are the last W queries of the prompt, the last
    one seeing all L tokens; k [L, C, D]."""

    index: ClassVar[Index | None] = None

    @abstractmethod
    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        """Importance of every token to every head at prefill end: [C, L] float32."""

    def pick(self, scores: torch.Tensor, counts: list[int], low: int, high: int) -> torch.Tensor:
        """The positions within [low, high) that each head keeps at prefill end: int64 [C, n], ascending, padded with L.

        scores [C, L]; counts[c] of them, or all; n is the largest count."""
        at = torch.arange(scores.shape[1], device=scores.device)
        inside = ((at >= low) & (at < high)).expand_as(scores)
        return top.listed(top.best(scores, upload(torch.tensor(counts), scores.device), inside), max(counts))

    def candidates(self, scores: torch.Tensor, count: int, window: int) -> torch.Tensor | None:
        """First tokens [C, U] ascending of the units that the index begins with, of a prompt whose heads keep `count`
        rows; `max_candidates` tokens in all. None: every complete unit of the prompt."""
        return None
