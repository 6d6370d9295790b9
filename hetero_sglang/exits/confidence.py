"""How sure a branch is of its first choice, from its logits: what a threshold is compared with."""

import math
from collections.abc import Callable

import torch

from hetero_sglang.errors import HeteroError

# The smallest that a threshold in (0, 1] can still be compared with.
_LEAST = torch.finfo(torch.float32).tiny

Measure = Callable[[torch.Tensor], torch.Tensor]


def probability(logits: torch.Tensor) -> torch.Tensor:
    """Of the first choice: [n, V] -> [n] float32 in (0, 1]."""
    return logits.float().softmax(-1).amax(-1)


def margin(logits: torch.Tensor) -> torch.Tensor:
    """Probability of the first choice less that of the second: [n, V] -> [n] float32 in (0, 1]."""
    best = logits.float().softmax(-1).topk(2, dim=-1).values  # [n, 2]
    return (best[:, 0] - best[:, 1]).clamp(_LEAST, 1.0)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """1 - H / log V: [n, V] -> [n] float32 in (0, 1]."""
    share = logits.float().softmax(-1)
    uncertain = torch.special.entr(share).sum(-1) / math.log(logits.shape[-1])
    return (1.0 - uncertain).clamp(_LEAST, 1.0)


# Each may stand in a CUDA graph. What is no number stays none, and no threshold lets it exit.
MEASURES: dict[str, Measure] = {"probability": probability, "margin": margin, "entropy": entropy}


def measure(kind: str, logits: torch.Tensor) -> torch.Tensor:
    """Confidence of `kind` in logits [n, V]: [n] float32 in (0, 1].

    Raises HeteroError for another kind, and for logits that are NaN, +inf or nothing but -inf (looking costs a
    synchronisation)."""
    check_kind(kind)
    found = MEASURES[kind](logits)
    if not torch.isfinite(found).all():
        raise HeteroError("the logits of a branch hold no finite numbers; train the branches again.")
    return found


def check_kind(kind: object) -> None:
    """Raises HeteroError unless `kind` is one of MEASURES."""
    if kind not in MEASURES:
        raise HeteroError(f"the confidence is {str(kind)[:40]!r}; choose one of {', '.join(MEASURES)}.")


def leaves(confidence: torch.Tensor, threshold: float) -> torch.Tensor:
    """Which tokens exit at a branch: [n] -> [n] bool. Threshold 1 lets none go, whatever the confidence."""
    return (confidence >= threshold) & (threshold < 1.0)
