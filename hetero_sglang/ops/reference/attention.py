"""Attention in plain torch: the oracle for every kernel, and the engine where no GPU is found.

On the CPU the exact forms give the bits of SGLang's torch_native backend (layers/attention/
torch_native_backend.py): same operator, same per-head shapes, only without its copies and padding queries."""

import torch
from torch.nn.functional import avg_pool1d
from torch.nn.functional import scaled_dot_product_attention as sdpa

QUERY_BLOCK = 1024  # bounds the mask of a prefill chunk


def prefill_exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention of the last n of L tokens, to the bit of torch_native: it attends from every position, with
    unused queries in front. q [n, Hq, D]; k [L, H, D], v [L, H, Dv]; returns [n, Hq, Dv]."""
    n, length = q.shape[0], k.shape[0]
    queries = q.new_zeros(q.shape[1], length, q.shape[2])  # [Hq, L, D]
    queries[:, length - n :] = q.movedim(0, 1)
    out = sdpa(
        queries[None],
        k.movedim(0, 1)[None],
        v.movedim(0, 1)[None],
        is_causal=True,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].movedim(1, 0)[length - n :]


def prefill_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """As `prefill_exact`, from the n queries alone: equal up to rounding, and much faster behind a long prefix."""
    n, length = q.shape[0], k.shape[0]
    if n == length:
        return prefill_exact(q, k, v, scale)
    prefix = length - n
    gqa = q.shape[1] != k.shape[1]
    keys, values = k.movedim(0, 1)[None], v.movedim(0, 1)[None]  # [1, H, L, D]
    out = q.new_empty(n, q.shape[1], v.shape[-1])
    for start in range(0, n, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, n)
        seen = prefix + end
        mask = torch.ones(end - start, seen, dtype=torch.bool, device=q.device).tril(prefix + start)
        part = sdpa(
            q[start:end].movedim(0, 1)[None],
            keys[:, :, :seen],
            values[:, :, :seen],
            attn_mask=mask,
            scale=scale,
            enable_gqa=gqa,
        )
        out[start:end] = part[0].movedim(1, 0)
    return out


def decode_exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """One query per head over L tokens, in torch_native's shape. q [H, G, D]; k [L, H, D]; returns [H, G, Dv]."""
    heads, group, dim = q.shape
    out = sdpa(
        q.reshape(1, heads * group, 1, dim),
        k.movedim(0, 1)[None],
        v.movedim(0, 1)[None],
        scale=scale,
        enable_gqa=group != 1,
    )
    return out.view(heads, group, v.shape[-1])


def decode_grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """As `decode_exact`, reading each KV head once for its whole group: faster, equal up to rounding."""
    return sdpa(q[None], k.movedim(0, 1)[None], v.movedim(0, 1)[None], scale=scale)[0]


POOL = 5  # neighbours averaged, as in HeteroCache's calibration (avgpool-5)


def pool_average(weights: torch.Tensor, neighbours: int = POOL) -> torch.Tensor:
    """Mean over a centred window of `neighbours` tokens; [C, G, L] -> [C, G, L]. At the ends, over those there are."""
    return avg_pool1d(weights, neighbours, 1, neighbours // 2, count_include_pad=False)
