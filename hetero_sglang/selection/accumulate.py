"""Which selected rows a fetch replaces: importance adds up, the least important rows go.

A head's rows keep their scores as a decayed maximum. Rows outside need no memory of theirs: all scores decay
alike, so a row that lost to every held row can only come back by a new score (docs/design.md has the argument).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Refill:
    """`victims` [m] index the held rows to overwrite with the tokens at `positions` [m] of `scores` [m]."""

    victims: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor
    held_scores: torch.Tensor  # [n], the held rows' scores after this observation


def accumulate(
    held: torch.Tensor,
    held_scores: torch.Tensor,
    scores: torch.Tensor,
    low: int,
    high: int,
    decay: float,
    most: int = 1 << 30,
) -> Refill:
    """Merge newly observed `scores` [L] into a head's selected rows.

    held [n]: positions of the selected rows; held_scores [n]. Tokens in [low, high) may come in: sinks and the
    ring are held anyway. The best n of both are kept, but no more than `most` tokens come in at once, best first;
    equal scores favour what is held.
    """
    kept = torch.maximum(held_scores * decay, scores[held])  # [n]
    outside = scores.clone()
    outside[held] = -1.0
    best = outside[low:high].topk(min(held.numel(), high - low, most))  # best first
    # Worst first, of equals the later row: DeviceMonitor's swaps are the same, pair by pair.
    worst = kept.sort(descending=True, stable=True).indices.flip(0)[: best.values.numel()]
    comes = (best.values > kept[worst]) & (best.values > 0)
    return Refill(worst[comes], best.indices[comes] + low, best.values[comes], kept)


def replace(held: torch.Tensor, scores: torch.Tensor, low: int, high: int, most: int = 1 << 30) -> Refill:
    """The paper's rule: the selected rows become the best tokens of the newest scores alone, `most` at once."""
    return accumulate(held, torch.zeros_like(scores[held]), scores, low, high, 0.0, most)
