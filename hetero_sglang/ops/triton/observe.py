"""Attention of a prompt's last queries to all of its tokens: twin of selection/scores.py's `observed_weights`."""

import torch
import triton
import triton.language as tl

_TOKENS = 128


@triton.jit(do_not_specialize=["scale", "length", "width", "blocks", "k_stride", "k_head_stride"])
def _observe(
    q, k, top, total, out, scale, length, width, blocks, k_stride, k_head_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr, PRECISION: tl.constexpr, REDUCE: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """A block of tokens for one head of a group. Without REDUCE: each query's maximum and sum of exponents, base 2."""
    head, member, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    query, at = tl.arange(0, BLOCK_W), tl.arange(0, BLOCK_D)
    token = block * BLOCK + tl.arange(0, BLOCK)
    real = query < width
    rows = (query * HEADS + head) * GROUP + member
    asked = tl.load(q + rows[:, None] * D + at[None, :], mask=real[:, None] & (at < D)[None, :], other=0.0)
    where = k + head.to(tl.int64) * k_head_stride + token[:, None].to(tl.int64) * k_stride + at[None, :]
    keys = tl.load(where, mask=(token < length)[:, None] & (at < D)[None, :], other=0.0)
    logits = tl.dot(asked, tl.trans(keys), input_precision=PRECISION) * scale  # [W, BLOCK]
    seen = real[:, None] & (token[None, :] < (length - (width - 1 - query))[:, None])
    logits = tl.where(seen, logits, float("-inf"))
    number = (head * GROUP + member).to(tl.int64)
    if REDUCE:
        highest = tl.load(top + number * width + query, mask=real, other=0.0)
        share = 1.0 / tl.load(total + number * width + query, mask=real, other=1.0)
        weights = tl.exp2(logits - highest[:, None]) * share[:, None]
        reduced = tl.sum(weights, 0) / width if MEAN else tl.max(weights, 0)
        tl.store(out + number * length + token, reduced, mask=token < length)
    else:
        highest = tl.max(logits, 1)
        safe = tl.where(highest == float("-inf"), 0.0, highest)
        sums = tl.sum(tl.exp2(logits - safe[:, None]), 1)
        place = (number * blocks + block) * width + query
        tl.store(top + place, highest, mask=real)
        tl.store(total + place, sums, mask=real)


def observed_weights(q: torch.Tensor, k: torch.Tensor, scale: float, over_queries: str) -> torch.Tensor:
    """Attention weights [C, G, L] float32 of the last W queries, reduced over them by `over_queries` (max or mean).

    q [W, C, G, D]: the last one sees all L tokens, the one before all but the last, and so on; k [L, C, D], its last
    dimension contiguous. Reads K twice and keeps no weights of single queries."""
    width, heads, group, dim = q.shape
    length = k.shape[0]
    q = q.contiguous()
    blocks = triton.cdiv(length, _TOKENS)
    tops = torch.empty(heads * group, blocks, width, dtype=torch.float32, device=k.device)
    totals = torch.empty_like(tops)
    out = torch.empty(heads, group, length, dtype=torch.float32, device=k.device)
    sizes = dict(
        HEADS=heads, GROUP=group, D=dim, BLOCK=_TOKENS, BLOCK_D=triton.next_power_of_2(dim),
        BLOCK_W=max(16, triton.next_power_of_2(width)),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32", MEAN=over_queries == "mean",
    )  # fmt: skip
    numbers = (scale * 1.4426950408889634, length, width, blocks, k.stride(0), k.stride(1))
    grid = (heads, group, blocks)
    _observe[grid](q, k, tops, totals, out, *numbers, REDUCE=False, **sizes)
    top = tops.amax(1)  # [C * G, W]
    total = (totals * (tops - top[:, None]).exp2()).sum(1)
    _observe[grid](q, k, top, total, out, *numbers, REDUCE=True, **sizes)
    return out
