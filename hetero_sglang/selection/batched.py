"""The policy's rules for many heads at once, without asking the device for a number."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def choose(scores: torch.Tensor, counts: list[int], low: int, high: int) -> torch.Tensor:
    """Each head's best positions within [low, high): scores [C, L], counts[c] of them wanted.

    Returns int32 [C, n], n the largest count: ascending, the first counts[c] of a row are the choice, the rest is L.
    """
    most, length = max(counts, default=0), scores.shape[1]
    if most == 0:
        return torch.empty(scores.shape[0], 0, dtype=torch.int32, device=scores.device)
    best = scores[:, low:high].topk(most, dim=1).indices + low  # [C, n], best first
    wanted = torch.tensor(counts)
    if scores.is_cuda:
        wanted = wanted.pin_memory().to(scores.device, non_blocking=True)
    beyond = torch.arange(most, device=scores.device)[None] >= wanted[:, None]
    return best.masked_fill(beyond, length).sort(dim=1).values.to(torch.int32)


@dataclass(frozen=True)
class Swaps:
    """Refills of W heads, M swaps at most: row `victims` [W, M] of a head takes the token at `positions` [W, M].

    Position -1: no swap. `scores` [W, M] of the tokens that come; `kept` [W, N], the held rows' scores from now on.
    """

    victims: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor
    kept: torch.Tensor


def refill(
    held: torch.Tensor, kept: torch.Tensor, scores: torch.Tensor, low: int, high: torch.Tensor, most: int
) -> Swaps:
    """`accumulate` for many heads: the best token outside takes the place of the worst row, while it is better.

    held [W, N] int64: positions of the selected rows, -1 where a head has fewer; kept [W, N]: their decayed scores;
    scores [W, L]; tokens in [low, high[w]) may come in.
    """
    length, there = scores.shape[1], held >= 0
    at = torch.arange(length, device=scores.device)[None]
    outside = scores.masked_fill((at < low) | (at >= high[:, None]), -1.0)  # [W, L]
    # Row 0 of a head always holds a token: padding points there, so that nothing else is struck out.
    held = torch.where(there, held, held[:, :1])
    kept = torch.where(there, torch.maximum(kept, scores.gather(1, held)), float("inf"))
    outside.scatter_(1, held, -1.0)
    count = min(most, length, held.shape[1])
    best = outside.topk(count, dim=1)  # [W, M], best first
    order = kept.sort(dim=1, descending=True, stable=True).indices
    worst = order.flip(1)[:, :count]  # [W, M], worst first, of equals the later row
    comes = (best.values > kept.gather(1, worst)) & (best.values > 0)
    return Swaps(worst, best.indices.masked_fill(~comes, -1), best.values, kept)
