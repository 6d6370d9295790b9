"""Decode attention over both device tiers: one launch for a layer's resident and compressed heads, one to merge.

Lengths, caps and lists are read on the device and the grid is fixed, so a captured graph serves every step.
Items of a row are merged as in flash-decoding. An item's first blocks are read while the kernel before it still runs:
the pipeliner moves the loop's first reads in front of the wait in its body."""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hetero_sglang.ops.base import Arrivals, Drafts, LayerBuffers
from hetero_sglang.ops.triton.early import early
from hetero_sglang.ops.triton.narrow import computed
from hetero_sglang.ops.triton.work import BESIDE, FIELDS, DecodeBuffers, DecodeShape

__all__ = ["BESIDE", "DecodeBuffers", "DecodeShape", "decode_attention"]


@triton.jit
def _rows(listed, token, seen, place, resident, P: tl.constexpr, RESIDENT: tl.constexpr):
    """Rows of a head's tokens: of their slots in the resident store, or of its pages in the hot pool."""
    if RESIDENT:
        return tl.load(listed + token, mask=seen, other=0).to(tl.int64) * resident + place
    else:
        return tl.load(listed + token // P, mask=seen, other=0).to(tl.int64) * P + token % P


@triton.jit
def _begin(
    q, k, v, row, own, scale,
    GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    PDL: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """The head's queries [16, D] at q, and the running softmax: with this step's token in it, at `row`, where `own`."""
    at, at_v, member = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV), tl.arange(0, 16)
    if PDL:
        gdc_wait()
    there = (member < GROUP)[:, None] & (at < D)[None, :]
    query = tl.load(q + member[:, None] * D + at[None, :], mask=there, other=0.0)
    key = tl.load(k + row * D + at, mask=own & (at < D), other=0.0)
    value = tl.load(v + row * DV + at_v, mask=own & (at_v < DV), other=0.0)
    logits = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], 1) * scale
    best = tl.where(own, logits, -1e30)  # finite: an item may have nothing that counts
    total = tl.where(own, tl.full([16], 1.0, tl.float32), 0.0)
    return query.to(TYPE), best, total, tl.zeros([16, BLOCK_DV], tl.float32) + value.to(tl.float32)[None, :]


@triton.jit
def _attend(
    query, best, total, out, q, k, v, listed, begin, end, fresh, dead, ring, place, resident, scale,
    GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr, RESIDENT: tl.constexpr,
    EARLY: tl.constexpr, PDL: tl.constexpr, RUNS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """The running softmax over an item's tokens: highest logit [16], sum of exponents [16], weighted values [16, Dv].

    Where EARLY, the loop's first blocks are under way before the kernel ahead has ended. Only this step's queries and
    rows are younger than that kernel's begin: they are read after the wait, and this step's row (`fresh`) in no block.
    """
    at, at_v, within = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV), tl.arange(0, BLOCK)
    own = fresh >= 0
    newest = _rows(listed, fresh, own, place, resident, P, RESIDENT)
    for start in range(begin, end, BLOCK):
        token = start + within
        seen = (token < end) & (token != fresh)
        if RUNS:  # what a selected run may hold again counts once
            behind, many = token - dead // 64, dead // 8 % 8
            around = behind - many + ring
            seen = seen & ((behind < 0) | (behind >= many)) & ((around < 0) | (around >= dead % 8))
        row = _rows(listed, token, seen, place, resident, P, RESIDENT)
        # Read once: what is found meanwhile stays in the card's cache.
        keys = tl.load(
            k + row[:, None] * D + at[None, :], mask=seen[:, None] & (at < D)[None, :], other=0.0,
            eviction_policy="evict_first",
        ).to(TYPE)  # fmt: skip
        values = tl.load(
            v + row[:, None] * DV + at_v[None, :], mask=seen[:, None] & (at_v < DV)[None, :], other=0.0,
            eviction_policy="evict_first",
        ).to(TYPE)  # fmt: skip
        if EARLY and start == begin:
            query, best, total, out = _begin(q, k, v, newest, own, scale, GROUP, D, DV, BLOCK_D, BLOCK_DV, PDL, TYPE)
        logits = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale  # [16, BLOCK]
        logits = tl.where(seen[None, :], logits, float("-inf"))
        highest = tl.maximum(best, tl.max(logits, 1))
        shrink = tl.exp2(best - highest)
        weights = tl.exp2(logits - highest[:, None])
        out = out * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        total = total * shrink + tl.sum(weights, 1)
        best = highest
    return best, total, out


@triton.jit(do_not_specialize=["resident", "ring"])
def _decode(
    q, resident_k, resident_v, hot_k, hot_v, slots, page_list, described, result, partial, weight, scale, resident,
    q_stride, ring,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, P: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr,
    FIELDS: tl.constexpr, EARLY: tl.constexpr, PDL: tl.constexpr, RUNS: tl.constexpr, MORE: tl.constexpr,
    TYPE: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    mine = described + item * FIELDS
    row, head, opening = tl.load(mine), tl.load(mine + 1), tl.load(mine + 2)
    begin, end, alone = tl.load(mine + 3), tl.load(mine + 4), tl.load(mine + 5)
    fresh, dead = -1, 0
    if EARLY:
        fresh = tl.load(mine + 6)
    if RUNS:
        dead = tl.load(mine + 7)
    if PDL:
        gdc_launch_dependents()
    if row < 0:
        if PDL:
            gdc_wait()
        return
    request, place = row // HEADS, row % HEADS
    at_v, member = tl.arange(0, BLOCK_DV), tl.arange(0, 16)
    queries = q + request.to(tl.int64) * q_stride + head * GROUP * D
    if EARLY:
        query = tl.zeros([16, BLOCK_D], TYPE)
        best = tl.full([16], float("-inf"), tl.float32)
        total = tl.zeros([16], tl.float32)
        out = tl.zeros([16, BLOCK_DV], tl.float32)
    else:
        query, best, total, out = _begin(
            queries, hot_k, hot_v, 0, False, scale, GROUP, D, DV, BLOCK_D, BLOCK_DV, PDL, TYPE
        )
    if place < resident:
        best, total, out = _attend(
            query, best, total, out, queries, resident_k, resident_v, slots + opening.to(tl.int64), begin, end, fresh,
            0, ring, place, resident, scale, GROUP, D, DV, P, BLOCK, BLOCK_D, BLOCK_DV, PRECISION, True, EARLY, PDL,
            False, TYPE,
        )  # fmt: skip
    else:
        best, total, out = _attend(
            query, best, total, out, queries, hot_k, hot_v, page_list + opening, begin, end, fresh, dead, ring,
            place, resident, scale, GROUP, D, DV, P, BLOCK, BLOCK_D, BLOCK_DV, PRECISION, False, EARLY, PDL, RUNS, TYPE,
        )  # fmt: skip
    there = (member < GROUP)[:, None] & (at_v < DV)[None, :]
    out = out / tl.where(total > 0, total, 1.0)[:, None]
    if MORE:
        alone = 0
    if alone != 0:
        place_out = result + ((request * HEADS + head) * GROUP + member).to(tl.int64)[:, None] * DV
        tl.store(place_out + at_v[None, :], out.to(result.dtype.element_ty), mask=there)
    else:
        where = (item * GROUP + member).to(tl.int64)
        tl.store(partial + where[:, None] * DV + at_v[None, :], out, mask=there)
        tl.store(weight + where, best + tl.log2(total), mask=member < GROUP)


@triton.jit
def indexed_head(indexed, head, n_heads, HEADS: tl.constexpr):
    """Which of a layer's heads with an index a head is, -1: of none."""
    every = tl.arange(0, HEADS)
    return tl.max(tl.where(tl.load(indexed + every, mask=every < n_heads, other=-1) == head, every, -1), 0)


@triton.jit
def _taken_in(
    best, total, result, query, k, v, row, here, dim, at, scale, D: tl.constexpr, DV: tl.constexpr
):  # fmt: skip
    """A query's running softmax with those of the rows [n] in it that are `here`."""
    keys = tl.load(k + row[:, None] * D + dim[None, :], mask=here[:, None] & (dim < D)[None, :], other=0.0)
    values = tl.load(v + row[:, None] * DV + at[None, :], mask=here[:, None] & (at < DV)[None, :], other=0.0)
    logits = tl.where(here, tl.sum(keys.to(tl.float32) * query[None, :], 1) * scale, float("-inf"))
    highest = tl.maximum(best, tl.max(logits, 0))
    shrink, shares = tl.exp2(best - highest), tl.exp2(logits - highest)
    result = result * shrink + tl.sum(values.to(tl.float32) * shares[:, None], 0)
    return highest, total * shrink + tl.sum(shares, 0), result


@triton.jit
def _arrivals(
    best, total, result, q, k, v, comes, indexed, n_heads, each, request, head, at, scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr,
    RUN: tl.constexpr,
):  # fmt: skip
    """A query's running softmax with the rows in it that came to its head meanwhile."""
    unit = indexed_head(indexed, head, n_heads, HEADS)
    count = 0
    if unit >= 0:
        count = tl.load(comes + request * n_heads + unit) * RUN
    first = (request * n_heads + unit).to(tl.int64) * each
    dim = tl.arange(0, BLOCK_D)
    query = tl.load(q + dim, mask=dim < D, other=0.0).to(tl.float32)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        here, mine = row < count, first + row
        best, total, result = _taken_in(best, total, result, query, k, v, mine, here, dim, at, scale, D, DV)
    return best, total, result


@triton.jit
def _drafts(
    best, total, result, q, k, v, seen, request, head, at, scale,
    HEADS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    EACH: tl.constexpr,
):  # fmt: skip
    """A draft's running softmax with those of its request's drafts in it that it attends to."""
    bits, dim = tl.load(seen + request), tl.arange(0, BLOCK_D)
    query = tl.load(q + dim, mask=dim < D, other=0.0).to(tl.float32)
    for start in range(0, EACH, ROWS):
        draft = start + tl.arange(0, ROWS)
        here = (draft < EACH) & (((bits >> draft.to(tl.int64)) & 1) != 0)
        mine = (request // EACH * EACH + draft).to(tl.int64) * HEADS + head
        best, total, result = _taken_in(best, total, result, query, k, v, mine, here, dim, at, scale, D, DV)
    return best, total, result


@triton.jit(do_not_specialize=["n_heads", "each", "q_stride"])
def _merge(
    out, partial, weight, heads, first_item, q, arrived_k, arrived_v, comes, indexed, n_heads, each, draft_k, draft_v,
    above, q_stride, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr,
    PDL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
    RUN: tl.constexpr, MORE: tl.constexpr, DRAFTS: tl.constexpr,
):  # fmt: skip
    row, member = tl.program_id(0), tl.program_id(1)
    at, within = tl.program_id(2) * PART + tl.arange(0, PART), tl.arange(0, BLOCK)
    request = row // HEADS
    head = tl.load(heads + row % HEADS)
    begin, end = tl.load(first_item + row), tl.load(first_item + row + 1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    if not MORE and DRAFTS == 0:  # noqa: SIM102 - what is compiled
        if end - begin == 1:  # written already
            return
    best = float("-inf")
    total = 0.0
    result = tl.zeros([PART], tl.float32)
    for start in range(begin, end, BLOCK):
        item = start + within
        seen = item < end
        where = item.to(tl.int64) * GROUP + member
        logs = tl.load(weight + where, mask=seen, other=float("-inf"))
        parts = tl.load(partial + where[:, None] * DV + at[None, :], mask=seen[:, None] & (at < DV)[None, :], other=0.0)
        highest = tl.maximum(best, tl.max(logs, 0))
        shrink = tl.exp2(best - highest)
        shares = tl.exp2(logs - highest)
        result = result * shrink + tl.sum(parts * shares[:, None], 0)
        total = total * shrink + tl.sum(shares, 0)
        best = highest
    query = q + request.to(tl.int64) * q_stride + (head * GROUP + member) * D
    if DRAFTS > 0:
        best, total, result = _drafts(
            best, total, result, query, draft_k, draft_v, above, request, head, at, scale, HEADS, D, DV, BLOCK_D, ROWS,
            DRAFTS,
        )  # fmt: skip
    if MORE:
        best, total, result = _arrivals(
            best, total, result, query, arrived_k, arrived_v, comes, indexed, n_heads, each, request, head, at, scale,
            D, DV, BLOCK_D, PADDED, ROWS, RUN,
        )  # fmt: skip
    result = tl.where(end > begin, result / total, 0.0)
    place_out = out + ((request * HEADS + head) * GROUP + member).to(tl.int64) * DV
    tl.store(place_out + at, result.to(out.dtype.element_ty), mask=at < DV)


def decode_attention(
    q: torch.Tensor, layer: LayerBuffers, slots: torch.Tensor, page_list: torch.Tensor, scale: float,
    work: DecodeBuffers, index: int, ordered: bool = False, arrivals: Arrivals | None = None,
    drafts: Drafts | None = None,
) -> torch.Tensor:  # fmt: skip
    """One token per request: q [B, Hq, D] (rows may lie apart) -> [B, Hq, Dv]. Requests of length 0 give zeros.

    Resident heads attend to the slots that `slots` lists for their request, compressed ones to the rows of their pages
    in `page_list`: as `work.plan` was told for this step. `index`: of the layer. Of what is read here the kernel just
    before may have written the queries and this step's rows, nothing else, unless it is `ordered`. Rows that come
    meanwhile (`arrivals`) are attended to when the others are merged, and so are `drafts`."""
    batch, query_heads, dim = q.shape
    heads, v_dim, page = work.kv_heads, layer.hot_v.shape[-1], layer.hot_k.shape[1]
    group, shape = query_heads // heads, work.shape
    block_d, block_dv = triton.next_power_of_2(dim), triton.next_power_of_2(v_dim)
    not_first = work.pdl and index > 0 and not ordered  # nothing but the plan may have come before layer 0
    out = q.new_empty(batch, query_heads, v_dim)
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    registers = shape.registers(max(block_d, block_dv) * q.element_size())
    _decode[(work.planned,)](
        q, layer.resident_k, layer.resident_v, layer.hot_k, layer.hot_v, slots, page_list, work.described[index],
        out, work.partial, work.weight, scale * 1.4426950408889634, layer.resident_k.shape[1], q.stride(0), work.ring,
        HEADS=heads, GROUP=group, D=dim, DV=v_dim, P=page, BLOCK=shape.block, BLOCK_D=block_d, BLOCK_DV=block_dv,
        PRECISION=precision, FIELDS=FIELDS, EARLY=registers is not None and work.one_wave, PDL=work.pdl,
        RUNS=work.runs[index] > 1, MORE=arrivals is not None or drafts is not None,
        TYPE=computed(q.dtype, layer.hot_k.dtype), num_warps=shape.warps, num_stages=shape.stages, maxnreg=registers,
        **early(not_first),
    )  # fmt: skip
    items = min(128, max(4, triton.next_power_of_2(2 * work.planned // work.rows)))
    part = min(32, block_dv) if items >= 64 else block_dv  # few rows of many items: more programs, of fewer reads each
    came, run, pdl = (out, out, work.heads, work.heads, 0, 0), 1, work.pdl and drafts is None
    new = (out, out, work.heads) if drafts is None else (drafts.k, drafts.v, drafts.seen)  # rows lie side by side
    if arrivals is not None:
        arrivals.there.hold(q.device)
        theirs, listed, run = arrivals.work, arrivals.layer.heads, arrivals.layer.run
        pdl = False  # it begins after two others
        each = theirs.limit(batch * listed.numel(), run) * run
        came = (theirs.arrived_k, theirs.arrived_v, theirs.comes, listed, listed.numel(), each)
    _merge[(work.rows, group, triton.cdiv(v_dim, part))](
        out, work.partial, work.weight, work.heads[index], work.first_item[index], q, *came, *new, q.stride(0),
        scale * 1.4426950408889634, HEADS=heads, GROUP=group, DV=v_dim, BLOCK=items, PART=part, PDL=pdl, D=dim,
        BLOCK_D=block_d, PADDED=triton.next_power_of_2(heads), ROWS=16, RUN=run, MORE=arrivals is not None,
        DRAFTS=0 if drafts is None else drafts.each, num_warps=max(1, items * part // 2048), **early(pdl),
    )  # fmt: skip
    return out
