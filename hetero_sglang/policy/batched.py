"""The policy's rules for many heads at once, without asking the device for a number."""

from __future__ import annotations

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
