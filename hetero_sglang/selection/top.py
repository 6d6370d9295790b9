"""The best tokens of many heads at once, and what that changes; nothing here asks the device for a number."""

from dataclasses import dataclass

import torch


def best(scores: torch.Tensor, counts: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Bool [N, L]: each row's counts[n] best among scores [N, L] where `inside` [N, L], or all of those.

    Equal scores are taken from the left, so tokens that share one come together, on every device alike; -inf counts as
    a score, and NaN as the lowest: whatever a damaged row does to scores, what is chosen exists."""
    if not scores.shape[1]:
        return inside
    lowest = torch.finfo(scores.dtype).min
    scores = scores.nan_to_num(nan=lowest, neginf=lowest).masked_fill(~inside, float("-inf"))
    wanted = torch.minimum(counts, inside.sum(1))[:, None]  # [N, 1]
    edge = scores.sort(dim=1, descending=True).values.gather(1, (wanted - 1).clamp(min=0))  # the last that gets in
    above, level = scores > edge, scores == edge
    return (above | (level & (level.cumsum(1) <= wanted - above.sum(1, keepdim=True)))) & (wanted > 0)


def listed(mask: torch.Tensor, most: int) -> torch.Tensor:
    """Where `mask` [N, L] is set, ascending: int64 [N, most], padded with L."""
    length = mask.shape[1]
    rank = torch.where(mask, mask.cumsum(1) - 1, most).clamp(max=most)
    out = torch.full((mask.shape[0], most + 1), length, dtype=torch.int64, device=mask.device)
    at = torch.arange(length, device=mask.device).expand_as(mask)
    return out.scatter_(1, rank, torch.where(mask, at, length))[:, :most]


@dataclass(frozen=True)
class Exchange:
    """What comes and what goes: row n's first `count[n]` of `tokens` [N, S] take the places of `places` [N, S]."""

    tokens: torch.Tensor
    places: torch.Tensor
    count: torch.Tensor


def exchange(chosen: torch.Tensor, held: torch.Tensor, there: torch.Tensor) -> Exchange:
    """From what is held to what was chosen: chosen [N, L] bool; held [N, S] positions, real where `there` [N, S]."""
    width = chosen.shape[1]
    held = torch.where(there, held, width)
    padded = torch.nn.functional.pad(chosen, (0, 1))  # one more column, for what is not there
    goes = there & ~padded.gather(1, held)
    comes = padded.scatter(1, held, False)[:, :-1]
    places = held.shape[1]
    return Exchange(listed(comes, places), listed(goes, places), torch.minimum(comes.sum(1), goes.sum(1)))
