"""Importance of tokens to a head, from its queries: softmax attention, pooled over neighbours and the GQA group."""

from __future__ import annotations

import torch
import torch.nn.functional as F

POOL = 5  # neighbours averaged, as in the paper's calibration (avgpool-5)


def attention_scores(
    q: torch.Tensor, k: torch.Tensor, scale: float, over_queries: str = "max", chunk: int = 8
) -> torch.Tensor:
    """Scores [C, L] float32 of L tokens for C KV heads.

    q [W, C, G, D]: the last W queries (the last one sees all L tokens, the one before all but the last, ...);
    k [L, C, D]. Softmax over the tokens, average pooling over POOL neighbours, reduced by `over_queries`
    (max or mean) over the W queries and by max over the group of G query heads.
    """
    width, heads = q.shape[0], q.shape[1]
    length = k.shape[0]
    scores = torch.empty(heads, length, dtype=torch.float32, device=k.device)
    for head in range(heads):
        keys = k[:, head].float()  # [L, D]
        best = keys.new_zeros(q.shape[2], length)  # [G, L]
        for start in range(0, width, chunk):
            queries = q[start : start + chunk, head].float()  # [w, G, D]
            logits = torch.matmul(queries, keys.T) * scale  # [w, G, L]
            for row in range(queries.shape[0]):
                hidden = width - 1 - (start + row)  # tokens after this query
                if hidden:
                    logits[row, :, length - hidden :] = float("-inf")
            weight = logits.softmax(-1)
            part = weight.amax(0) if over_queries == "max" else weight.sum(0) / width  # [G, L]
            best = torch.maximum(best, part) if over_queries == "max" else best + part
        scores[head] = _pool(best).amax(0)
    return scores


def _pool(scores: torch.Tensor) -> torch.Tensor:
    return F.avg_pool1d(scores[None], POOL, 1, POOL // 2, count_include_pad=False)[0]


def top_positions(scores: torch.Tensor, count: int, low: int = 0, high: int | None = None) -> torch.Tensor:
    """Positions of the best `count` scores within [low, high), best first: int64."""
    inside = scores[low:high]
    return inside.topk(min(count, inside.numel())).indices + low


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """|A and B| / min(|A|, |B|) of two position sets, each without duplicates; 1.0 when one is empty."""
    smaller = min(one.numel(), other.numel())
    return float(torch.isin(one, other).sum()) / smaller if smaller else 1.0
