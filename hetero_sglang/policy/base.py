"""What a KV cache policy decides; everything else (tiers, prefixes, worker, server) is shared by all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from hetero_sglang.config.description import Description, Refresh, Unit

__all__ = ["Index", "Policy", "Refresh"]


class Index(Unit, ABC):
    """A summary of keys that stays on the device, by which a STEP policy finds tokens again.

    It is made of units of `span` consecutive tokens, `rows` hot rows each, so its bytes come out of the working
    set's. A unit never changes once it is complete; younger tokens are in the ring (`span` is at most the window).
    """

    @abstractmethod
    def build(self, k: torch.Tensor, v_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Complete units from their keys: k [C, U, span, D] -> K rows [C, U, rows, D], V rows [C, U, rows, v_dim]."""

    @abstractmethod
    def scores(self, q: torch.Tensor, k_rows: torch.Tensor, v_rows: torch.Tensor, scale: float) -> torch.Tensor:
        """Scores of the indexed tokens for one step's queries, comparable within a head.

        q [C, G, D], k_rows [C, U, rows, D], v_rows [C, U, rows, Dv] -> [C, U * span] float32.
        """


@dataclass(frozen=True)
class Policy(Description, ABC):
    """One way to choose which rows of a head stay on the device. Methods are pure: any device, no state.

    Heads are the compressed KV heads of one layer (C of them, each for G query heads); sinks and the most recent
    tokens are kept by all and never chosen. Shapes: q [W, C, G, D] are the last W queries of the prompt, the last
    one seeing all L tokens; k [L, C, D].
    """

    index: ClassVar[Index | None] = None
    on_device: ClassVar[bool] = False  # the CUDA engine runs it: picks the best tokens, at prefill end or on drift

    @abstractmethod
    def scores(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        """Importance of every token to every head at prefill end: [C, L] float32."""

    def pick(self, scores: torch.Tensor, counts: list[int], low: int, high: int) -> list[torch.Tensor]:
        """The positions within [low, high) that each head keeps: counts[c] of them (or all), ascending, int64.

        Equal scores are taken from the left, so tokens that share one come together, on every device alike. Used at
        prefill end and, by STEP policies, at every step, where -inf marks what the index does not cover.
        """
        inside = scores[:, low:high]  # [C, n]
        counts = [min(count, inside.shape[1]) for count in counts]
        most = max(counts, default=0)
        if not most:
            return [torch.empty(0, dtype=torch.int64, device=scores.device) for _ in counts]
        wanted = torch.tensor(counts, device=scores.device)[:, None]  # [C, 1]
        edge = inside.topk(most).values.gather(1, (wanted - 1).clamp(min=0))  # [C, 1], the last score that gets in
        above, level = inside > edge, inside == edge
        taken = above | (level & (level.cumsum(1) <= wanted - above.sum(1, keepdim=True)))
        return [positions + low for positions in taken.nonzero()[:, 1].split(counts)]

    def candidates(self, scores: torch.Tensor, count: int, window: int) -> torch.Tensor | None:
        """Positions [C, n] ascending that may ever be selected again, of a prompt whose heads keep `count` rows.

        None: all of them. The index is made of these, so n is a multiple of its span and n <= `max_candidates`.
        """
        return None
