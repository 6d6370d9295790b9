"""Decode attention over both device tiers: one launch for a layer's resident and compressed heads, one to merge.

Lengths, caps and lists are read on the device and the grid is fixed, so a captured graph serves every step.
Items of a row are merged as in flash-decoding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hetero_sglang.attention.kernels.store import LayerBuffers, StepTables
from hetero_sglang.attention.kernels.work import DecodeBuffers, DecodeShape

__all__ = ["DecodeBuffers", "DecodeShape", "decode_attention"]


@triton.jit
def _attend(
    query, k, v, row, seen, best, total, out, scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of tokens whose K/V are at rows `row` [N] of k and v; updates the running softmax."""
    at, at_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    keys = tl.load(k + row[:, None] * D + at[None, :], mask=seen[:, None] & (at < D)[None, :], other=0.0)
    logits = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale  # [16, N]
    logits = tl.where(seen[None, :], logits, float("-inf"))
    highest = tl.maximum(best, tl.max(logits, 1))
    shrink = tl.exp2(best - highest)
    weights = tl.exp2(logits - highest[:, None])
    values = tl.load(v + row[:, None] * DV + at_v[None, :], mask=seen[:, None] & (at_v < DV)[None, :], other=0.0)
    out = out * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    return highest, total * shrink + tl.sum(weights, 1), out


@triton.jit(do_not_specialize=["resident", "first", "caps_per_request", "rows"])
def _decode(
    q, resident_k, resident_v, hot_k, hot_v, resident_heads, compressed_heads, slots, starts, length, cap, page_start,
    page_list, first_item, partial, weight, scale, resident, first, caps_per_request, rows, q_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, P: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    if item >= tl.load(first_item + rows):
        return
    every = tl.arange(0, ROWS)
    firsts = tl.load(first_item + every, mask=every < rows, other=2147483647)
    row = tl.sum((firsts <= item).to(tl.int32)) - 1
    request, place = row // HEADS, row % HEADS
    opening = tl.load(first_item + row)
    pieces = tl.load(first_item + row + 1) - opening
    tokens = tl.load(length + request)
    at, at_v, member = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV), tl.arange(0, 16)
    within = tl.arange(0, BLOCK)
    best = tl.full([16], float("-inf"), tl.float32)
    total = tl.zeros([16], tl.float32)
    out = tl.zeros([16, BLOCK_DV], tl.float32)
    number = request * caps_per_request + first + place - resident
    if place < resident:
        head = tl.load(resident_heads + place)
    else:
        head = tl.load(compressed_heads + place - resident)
        tokens = tl.minimum(tl.load(cap + number), tokens)
    size = tl.cdiv(tl.cdiv(tokens, pieces), BLOCK) * BLOCK  # a row's items are alike
    begin = (item - opening) * size
    end = tl.minimum(begin + size, tokens)
    query = tl.load(
        q + request.to(tl.int64) * q_stride + head * GROUP * D + member[:, None] * D + at[None, :],
        mask=(member < GROUP)[:, None] & (at < D)[None, :],
        other=0.0,
    )
    if place < resident:
        listed = slots + tl.load(starts + request).to(tl.int64)
        for start in range(begin, end, BLOCK):
            token = start + within
            seen = token < end
            slot = tl.load(listed + token, mask=seen, other=0).to(tl.int64)
            best, total, out = _attend(
                query, resident_k, resident_v, slot * resident + place, seen, best, total, out, scale,
                D, DV, BLOCK_D, BLOCK_DV, PRECISION,
            )  # fmt: skip
    else:
        listed = page_list + tl.load(page_start + number)
        for start in range(begin, end, BLOCK):
            token = start + within
            seen = token < end
            page = tl.load(listed + token // P, mask=seen, other=0).to(tl.int64)
            best, total, out = _attend(
                query, hot_k, hot_v, page * P + token % P, seen, best, total, out, scale,
                D, DV, BLOCK_D, BLOCK_DV, PRECISION,
            )  # fmt: skip
    there = (member < GROUP)[:, None] & (at_v < DV)[None, :]
    where = (item * GROUP + member).to(tl.int64)
    tl.store(partial + where[:, None] * DV + at_v[None, :], out / total[:, None], mask=there)
    tl.store(weight + where, best + tl.log2(total), mask=member < GROUP)


@triton.jit(do_not_specialize=["resident", "rows"])
def _merge(
    out, partial, weight, resident_heads, compressed_heads, first_item, resident, rows,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    row, member = tl.program_id(0), tl.program_id(1)
    request, place = row // HEADS, row % HEADS
    if place < resident:  # noqa: SIM108 (Triton loads within a conditional expression on both sides)
        head = tl.load(resident_heads + place)
    else:
        head = tl.load(compressed_heads + place - resident)
    begin, end = tl.load(first_item + row), tl.load(first_item + row + 1)
    at, within = tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK)
    best = float("-inf")
    total = 0.0
    result = tl.zeros([BLOCK_DV], tl.float32)
    for start in range(begin, end, BLOCK):
        item = start + within
        seen = item < end
        where = item.to(tl.int64) * GROUP + member
        logs = tl.load(weight + where, mask=seen, other=float("-inf"))
        parts = tl.load(
            partial + where[:, None] * DV + at[None, :], mask=seen[:, None] & (at < DV)[None, :], other=0.0
        )
        highest = tl.maximum(best, tl.max(logs, 0))
        shrink = tl.exp2(best - highest)
        shares = tl.exp2(logs - highest)
        result = result * shrink + tl.sum(parts * shares[:, None], 0)
        total = total * shrink + tl.sum(shares, 0)
        best = highest
    result = tl.where(end > begin, result / total, 0.0)
    place_out = out + ((request * HEADS + head) * GROUP + member).to(tl.int64) * DV
    tl.store(place_out + at, result.to(out.dtype.element_ty), mask=at < DV)


def decode_attention(
    q: torch.Tensor,
    layer: LayerBuffers,
    resident_heads: torch.Tensor,
    compressed_heads: torch.Tensor,
    slots: torch.Tensor,
    starts: torch.Tensor,
    step: StepTables,
    scale: float,
    work: DecodeBuffers,
    index: int,
) -> torch.Tensor:
    """One token per request: q [B, Hq, D] (rows may lie apart) -> [B, Hq, Dv]. Requests of length 0 give zeros.

    Resident head r of request b attends to its `step.length[b]` tokens, whose slots are slots[starts[b] + t];
    compressed head c to the first min(cap, length) rows of its page list. `work.plan` came before; `index`: layer.
    """
    batch, query_heads, dim = q.shape
    heads, v_dim, page = work.kv_heads, layer.hot_v.shape[-1], layer.hot_k.shape[1]
    group, shape = query_heads // heads, work.shape
    out = q.new_empty(batch, query_heads, v_dim)
    resident, first_item = layer.resident_k.shape[1], work.first_item[index]
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    _decode[(work.items(batch),)](
        q, layer.resident_k, layer.resident_v, layer.hot_k, layer.hot_v, resident_heads, compressed_heads,
        slots, starts, step.length, step.cap, step.page_start, step.page_list, first_item, work.partial,
        work.weight, scale * 1.4426950408889634, resident, layer.first, step.cap.shape[1], work.rows,
        q.stride(0), HEADS=heads, GROUP=group, D=dim, DV=v_dim, P=page, ROWS=triton.next_power_of_2(work.rows),
        BLOCK=shape.block, BLOCK_D=triton.next_power_of_2(dim), BLOCK_DV=triton.next_power_of_2(v_dim),
        PRECISION=precision, num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
    _merge[(work.rows, group)](
        out, work.partial, work.weight, resident_heads, compressed_heads, first_item, resident, work.rows,
        HEADS=heads, GROUP=group, DV=v_dim, BLOCK=64, BLOCK_DV=triton.next_power_of_2(v_dim), num_warps=4,
    )  # fmt: skip
    return out
