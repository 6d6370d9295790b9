"""Numbers out of distributions, and of many texts' numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Any

import torch

ALL = "all"
SUMS = ("decoded", "steps", "right", "right_full", "whole", "whole_full")


def divergence(reference: torch.Tensor, own: torch.Tensor) -> float:
    """KL(reference || own) in nats, of log probabilities over the whole vocabulary."""
    wanted = reference.double()
    # A token that the reference excludes adds nothing, whatever the other says.
    terms = torch.where(wanted == -torch.inf, 0.0, wanted.exp() * (wanted - own.double()))
    return float(terms.sum())


def summarize(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over texts, and sums of right choices; `scores` as from `measure.score`."""
    differences = [each["nll"] - each["nll_full"] for each in scores]
    return {
        "texts": len(scores),
        **{name: sum(each[name] for each in scores) for name in SUMS},
        "nll": fmean(each["nll"] for each in scores),
        "nll_difference": fmean(differences),
        "nll_difference_error": stdev(differences) / sqrt(len(scores)) if len(scores) > 1 else None,
        "kl": fmean(each["kl"] for each in scores),
        "same_first": fmean(each["same_first"] for each in scores),
        "kl_prefill": fmean(each["kl_prefill"] for each in scores),
        "seconds": sum(each["seconds"] for each in scores),
    }


def rows_per_head(counted: Sequence[dict[str, int | None]], steps: int, heads: int) -> float | None:
    """Rows fetched per token and KV head; None where the server does not count them."""
    known = [rows for each in counted if (rows := each["fetched_rows"]) is not None]
    return sum(known) / (steps * heads) if known and steps else None
