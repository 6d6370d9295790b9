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
    held: torch.Tensor, held_scores: torch.Tensor, scores: torch.Tensor, low: int, high: int, decay: float
) -> Refill:
    """Merge newly observed `scores` [L] into a head's selected rows.

    held [n]: positions of the selected rows; held_scores [n]. Tokens in [low, high) may come in: sinks and the
    ring are held anyway. The best n of both are kept; equal scores favour what is held.
    """
    count = held.numel()
    kept_scores = torch.maximum(held_scores * decay, scores[held])
    candidates = scores.clone()
    candidates[held] = -1.0
    fresh = candidates[low:high].topk(min(count, high - low))
    union = torch.cat((kept_scores, fresh.values))  # [n + m]
    order = torch.sort(union, descending=True, stable=True).indices[:count]
    stays = torch.zeros(union.numel(), dtype=torch.bool, device=union.device)
    stays[order] = True
    stays[count:] &= fresh.values > 0
    incoming = stays[count:].nonzero()[:, 0]
    victims = (~stays[:count]).nonzero()[:, 0][: incoming.numel()]
    incoming = incoming[: victims.numel()]
    return Refill(victims, fresh.indices[incoming] + low, fresh.values[incoming], kept_scores)


def replace(held: torch.Tensor, scores: torch.Tensor, low: int, high: int) -> Refill:
    """The paper's rule: the selected rows become the best tokens of the newest scores alone."""
    count = held.numel()
    best = scores[low:high].topk(min(count, high - low))
    chosen = best.indices + low
    victims = (~torch.isin(held, chosen)).nonzero()[:, 0]
    fresh = (~torch.isin(chosen, held)).nonzero()[:, 0][: victims.numel()]
    return Refill(victims[: fresh.numel()], chosen[fresh], best.values[fresh], scores[held])
