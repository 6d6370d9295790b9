"""The weighted loss, and which predictions were right."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.recall.mix import TEXT
from benchmarks.recall.sampler import ANSWER_WEIGHT, TEXT_WEIGHT


def targets_of(ids: torch.Tensor, kinds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What each token should predict: ids, kinds [B, L] -> next ids int64, kinds uint8 and weights, all [B * L].

    The last token of a sample predicts nothing, so its weight is 0 and its kind TEXT, as bos's.
    """
    following, kind = ids.roll(-1, 1).long(), kinds.roll(-1, 1)
    weight = torch.where(kind == TEXT, TEXT_WEIGHT, ANSWER_WEIGHT)
    weight[:, -1] = 0
    return following.flatten(), kind.flatten(), weight.flatten()


def weighted_loss(
    hidden: torch.Tensor, head: torch.Tensor, following: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy by weight, and whether each most likely token is the right one.

    hidden [T, W], head [V, W], following [T] int64, weight [T] -> scalar, [T] bool.
    """
    logits = F.linear(hidden, head.to(hidden.dtype)).float()  # [T, V]
    each = F.cross_entropy(logits, following, reduction="none")
    return (each * weight).sum() / weight.sum(), logits.detach().argmax(-1) == following
