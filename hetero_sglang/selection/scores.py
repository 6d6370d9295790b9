"""Importance of tokens to a head, from its queries: softmax attention, pooled over neighbours and the GQA group."""

import torch

from hetero_sglang.ops.reference.attention import pool_average


def observed_weights(q: torch.Tensor, k: torch.Tensor, scale: float, over_queries: str, chunk: int = 8) -> torch.Tensor:
    """Attention weights [C, G, L] float32 of the last W queries, reduced over them by `over_queries` (max or mean).

    q [W, C, G, D]: the last one sees all L tokens, the one before all but the last, and so on; k [L, C, D]."""
    if k.is_cuda:
        from hetero_sglang.ops.triton import observe  # Triton is there where CUDA is

        return observe.observed_weights(q, k, scale, over_queries)
    width, heads = q.shape[0], q.shape[1]
    length = k.shape[0]
    reduced = torch.zeros(heads, q.shape[2], length, dtype=torch.float32, device=k.device)
    for head in range(heads):
        keys = k[:, head].float()  # [L, D]
        for start in range(0, width, chunk):
            queries = q[start : start + chunk, head].float()  # [w, G, D]
            logits = torch.matmul(queries, keys.T) * scale  # [w, G, L]
            for row in range(queries.shape[0]):
                hidden = width - 1 - (start + row)  # tokens after this query
                if hidden:
                    logits[row, :, length - hidden :] = float("-inf")
            weight = logits.softmax(-1)
            if over_queries == "max":
                torch.maximum(reduced[head], weight.amax(0), out=reduced[head])
            else:
                reduced[head] += weight.sum(0) / width
    return reduced


def attention_scores(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """HeteroCache's scores [C, L] float32: the most any observed query of the group looks at a token's neighbourhood.

    q [W, C, G, D], k [L, C, D] as in `observed_weights`."""
    return pool_average(observed_weights(q, k, scale, "max")).amax(1)
