"""Which keys a head attends to, and how much two such sets share (pure tensor functions)."""

from __future__ import annotations

import torch

REDUCTIONS = ("mean", "max")


def window_attention(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention of the last queries on every key, averaged over those queries.

    query [Hq, W, D] are the last W positions of key [H, L, D], each seeing itself and what precedes it.
    Returns float32 [H, G, L] with G = Hq / H; no [L, L] matrix is made."""
    heads, length, dim = key.shape
    window = query.shape[1]
    grouped = query.reshape(heads, -1, dim).float()  # [H, G*W, D]
    logits = grouped @ key.float().transpose(1, 2) * scaling
    logits = logits.view(heads, -1, window, length)  # [H, G, W, L]
    position = torch.arange(length, device=key.device)
    hidden = position > (length - window + torch.arange(window, device=key.device))[:, None]  # [W, L]
    return logits.masked_fill_(hidden, -torch.inf).softmax(-1).mean(2)


def reduce_group(scores: torch.Tensor, reduction: str) -> torch.Tensor:
    """[H, G, L] -> [H, L]: `mean` (the paper's calibration) or `max` over the query heads of a KV head."""
    return scores.mean(1) if reduction == "mean" else scores.amax(1)


def top_mask(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of [..., L] as a boolean mask [..., L] with exactly k set."""
    chosen = scores.topk(k, dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)


def overlap(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """|A and B| / min(|A|, |B|) of boolean masks [..., L], in [0, 1]; 0 where a set is empty."""
    smaller = torch.minimum(one.sum(-1), other.sum(-1))
    return (one & other).sum(-1) / smaller.clamp(min=1)


def pairwise_overlap(masks: torch.Tensor) -> torch.Tensor:
    """[H, L] boolean -> [H, H] overlap of every pair of heads."""
    shared = masks.float() @ masks.float().T
    size = masks.sum(-1)
    return shared / torch.minimum(size[:, None], size[None, :]).clamp(min=1)
