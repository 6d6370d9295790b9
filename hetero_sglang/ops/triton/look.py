"""What pivots look at, and how much of that their satellites hold: every layer of several requests in three launches.

Twins of selection/scores.py (`observed_weights` of one query, `pool_average`, `overlap`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.selection.scores import POOL

_SPAN = 1024  # tokens of a pivot that one program scores
_TOKENS = 512  # of a pivot that one program pools
_ROWS = 256  # of a satellite that one program sums up


@dataclass(frozen=True)
class Pivots:
    """Every pivot of the rank, in layer order; all [P] on the device."""

    keys: torch.Tensor  # int64, where its layer's resident K [rows, R, D] lies, in elements from `base`
    heads: torch.Tensor  # int32, R of its layer
    place: torch.Tensor  # int32, its index among them
    query: torch.Tensor  # int32, KV head of all layers: layer * H + head
    base: torch.Tensor  # some layer's resident K


@dataclass(frozen=True)
class Glance:
    """One launch's work: n requests, I (request, pivot) items and S (request, satellite) pairs; ints on the device.

    An item's logits [G, L] lie in the workspace from `start`, its pooled scores [L] follow them.
    """

    slot: torch.Tensor  # [n] request slots
    length: torch.Tensor  # [n] tokens
    row: torch.Tensor  # [n] their rows in the step whose queries were saved
    item_request: torch.Tensor  # [I] index among the n
    item_pivot: torch.Tensor  # [I]
    start: torch.Tensor  # [I] int64
    pair_item: torch.Tensor  # [S]
    pair_number: torch.Tensor  # [S] compressed head of the rank
    longest: int


@triton.jit(do_not_specialize=["scale", "stride", "layer_stride", "spans"])
def _score(
    queries, req_to_token, slot, length, row, item_request, item_pivot, start, base, pivot_keys, pivot_heads,
    pivot_place, pivot_query, workspace, tops, totals, scale, stride, layer_stride, spans,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits of a span of an item's tokens, base 2, with their maximum and the sum of their exponents."""
    item, span = tl.program_id(0), tl.program_id(1)
    request = tl.load(item_request + item)
    tokens = tl.load(length + request)
    member, at, within = tl.arange(0, 16), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK)
    top = tl.full([16], float("-inf"), tl.float32)
    total = tl.zeros([16], tl.float32)
    begin = span * SPAN
    if begin < tokens:
        pivot = tl.load(item_pivot + item)
        heads, place = tl.load(pivot_heads + pivot).to(tl.int64), tl.load(pivot_place + pivot)
        keys = base + tl.multiple_of(tl.load(pivot_keys + pivot), 16)  # stores are aligned: wide loads
        listed = req_to_token + tl.load(slot + request).to(tl.int64) * stride
        which = tl.load(pivot_query + pivot)
        first = (which // HEADS).to(tl.int64) * layer_stride
        first += (tl.load(row + request).to(tl.int64) * HEADS + which % HEADS) * GROUP * D
        real = (member < GROUP)[:, None]
        query = tl.load(queries + first + member[:, None] * D + at[None, :], mask=real & (at < D)[None, :], other=0.0)
        out = workspace + tl.load(start + item) + member[:, None].to(tl.int64) * tokens
        for opening in range(begin, tl.minimum(begin + SPAN, tokens), BLOCK):
            token = opening + within
            seen = token < tokens
            rows = tl.load(listed + token, mask=seen, other=0).to(tl.int64) * heads + place
            key = tl.load(keys + rows[:, None] * D + at[None, :], mask=seen[:, None] & (at < D)[None, :], other=0.0)
            logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale  # [16, BLOCK]
            logits = tl.where(seen[None, :], logits, float("-inf"))
            highest = tl.maximum(top, tl.max(logits, 1))
            total = total * tl.exp2(top - highest) + tl.sum(tl.exp2(logits - highest[:, None]), 1)
            top = highest
            tl.store(out + token[None, :], logits, mask=real & seen[None, :])
    where = (item.to(tl.int64) * spans + span) * GROUP + member
    tl.store(tops + where, top, mask=member < GROUP)
    tl.store(totals + where, total, mask=member < GROUP)


@triton.jit(do_not_specialize=["blocks"])
def _pool(
    length, item_request, start, workspace, top, total, sums, blocks,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, POOLED: tl.constexpr,
):  # fmt: skip
    """Attention averaged over neighbours, the most of the group's; and the sum of what is not averaged."""
    item, block = tl.program_id(0), tl.program_id(1)
    tokens = tl.load(length + tl.load(item_request + item))
    token = block * BLOCK + tl.arange(0, BLOCK)
    here = token < tokens
    logits = workspace + tl.load(start + item)
    best = tl.zeros([BLOCK], tl.float32)
    seen = tl.zeros([BLOCK], tl.float32)
    around = tl.minimum(token + POOLED // 2, tokens - 1) - tl.maximum(token - POOLED // 2, 0) + 1
    for member in tl.static_range(GROUP):
        highest = tl.load(top + item * GROUP + member)
        share = 1.0 / tl.load(total + item * GROUP + member)
        pooled = tl.zeros([BLOCK], tl.float32)
        for step in tl.static_range(POOLED):
            near = token + step - POOLED // 2
            inside = here & (near >= 0) & (near < tokens)
            weight = tl.exp2(tl.load(logits + member * tokens + near, mask=inside, other=float("-inf")) - highest)
            pooled += weight * share
            if step == POOLED // 2:
                seen = tl.maximum(seen, weight * share)
        best = tl.maximum(best, pooled / around.to(tl.float32))
    tl.store(logits + GROUP * tokens.to(tl.int64) + token, best, mask=here)
    tl.store(sums + item.to(tl.int64) * blocks + block, tl.sum(seen, 0))


@triton.jit(do_not_specialize=["heads", "blocks"])
def _held(
    slot, length, item_request, start, pair_item, pair_number, cap, page_start, page_list, position, workspace, top,
    total, sums, heads, blocks,
    GROUP: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How much of its pivot's attention lies on a block of a satellite's rows."""
    pair, block = tl.program_id(0), tl.program_id(1)
    item = tl.load(pair_item + pair)
    request = tl.load(item_request + item)
    tokens = tl.load(length + request)
    table = tl.load(slot + request).to(tl.int64) * heads + tl.load(pair_number + pair)
    row = block * BLOCK + tl.arange(0, BLOCK)
    here = row < tl.minimum(tl.load(cap + table), tokens)
    page = tl.load(page_list + tl.load(page_start + table) + row // P, mask=here, other=0).to(tl.int64)
    token = tl.load(position + page * P + row % P, mask=here, other=-1)
    here = here & (token >= 0) & (token < tokens)
    logits = workspace + tl.load(start + item)
    seen = tl.zeros([BLOCK], tl.float32)
    for member in tl.static_range(GROUP):
        highest = tl.load(top + item * GROUP + member)
        share = 1.0 / tl.load(total + item * GROUP + member)
        weight = tl.exp2(tl.load(logits + member * tokens + token, mask=here, other=float("-inf")) - highest)
        seen = tl.maximum(seen, weight * share)
    tl.store(sums + pair.to(tl.int64) * blocks + block, tl.sum(seen, 0))


def look(
    glance: Glance, pivots: Pivots, queries: torch.Tensor, req_to_token: torch.Tensor, tables: DeviceTables,
    position: torch.Tensor, workspace: torch.Tensor, group: int, widest: int, scale: float,
) -> torch.Tensor:  # fmt: skip
    """Overlaps [S] float32: the share of each pair's pivot's attention on the rows its satellite holds.

    queries [layers, batch, Hq, D] of the step after which this is called; position [pages, P] int32; workspace [n]
    float32 takes (G + 1) * L numbers per item; `widest`: no satellite has more rows.
    """
    items, pairs = glance.item_pivot.numel(), glance.pair_item.numel()
    dim, query_heads = queries.shape[-1], queries.shape[2]
    spans, blocks = triton.cdiv(glance.longest, _SPAN), triton.cdiv(glance.longest, _TOKENS)
    tops = workspace.new_empty(items, spans, group)
    totals = torch.empty_like(tops)
    _score[(items, spans)](
        queries, req_to_token, glance.slot, glance.length, glance.row, glance.item_request, glance.item_pivot,
        glance.start, pivots.base, pivots.keys, pivots.heads, pivots.place, pivots.query, workspace, tops, totals,
        scale * 1.4426950408889634, req_to_token.stride(0), queries.stride(0), spans,
        HEADS=query_heads // group, GROUP=group, D=dim, SPAN=_SPAN, BLOCK=32, BLOCK_D=triton.next_power_of_2(dim),
        PRECISION="ieee" if queries.dtype == torch.float32 else "tf32", num_warps=4, num_stages=3,
    )  # fmt: skip
    top = tops.amax(1)  # [I, G]
    total = (totals * (tops - top[:, None]).exp2()).sum(1)  # [I, G]
    sums = workspace.new_empty(items, blocks)
    _pool[(items, blocks)](
        glance.length, glance.item_request, glance.start, workspace, top, total, sums, blocks,
        GROUP=group, BLOCK=_TOKENS, POOLED=POOL,
    )  # fmt: skip
    pieces = triton.cdiv(min(widest, glance.longest), _ROWS)
    held = workspace.new_empty(pairs, pieces)
    _held[(pairs, pieces)](
        glance.slot, glance.length, glance.item_request, glance.start, glance.pair_item, glance.pair_number,
        tables.cap, tables.page_start, tables.page_list, position, workspace, top, total, held, tables.cap.shape[1],
        pieces, GROUP=group, P=position.shape[1], BLOCK=_ROWS,
    )  # fmt: skip
    return held.sum(1) / sums.sum(1)[glance.pair_item.long()]
