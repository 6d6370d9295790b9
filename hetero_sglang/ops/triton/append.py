"""New tokens of a prompt that goes on with a working set: twin of ops/reference/append.py.

A library's kernels would need a list of rows for every head and a plan for every layer; here a head's rows follow from
its cap and the request's lengths alone."""

import torch
import triton
import triton.language as tl

from hetero_sglang.cache.narrow import largest
from hetero_sglang.ops.base import Arrivals, Behind, LayerBuffers, StepTables
from hetero_sglang.ops.triton.decode import indexed_head
from hetero_sglang.ops.triton.narrow import computed, narrowed
from hetero_sglang.ops.triton.probe import span
from hetero_sglang.ops.triton.store import ring_row

_QUERIES = 128  # rows of a tile, at most: new tokens by query heads of a group
_TOKENS = 64  # that a program reads at a time
_SPLITS = 16  # of what a head holds, at most
_MERGED = 16  # rows that a program puts together
_LEAST = 256  # tokens that a split is for
_NOTHING = tl.constexpr(-1e30)  # below all logits: finite, so that differences are numbers


@triton.jit
def _attended(logit, top, total, result, values, here):
    """Take in tokens with base-2 logits [M, N] and values [N, Dv], of which `here` [M, N] count."""
    logit = tl.where(here, logit, _NOTHING)
    higher = tl.maximum(top, tl.max(logit, 1))
    share = tl.where(here, tl.exp2(logit - higher[:, None]), 0.0)
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(share, 1)
    result = result * shrink[:, None] + tl.dot(share.to(values.dtype), values, input_precision="ieee")
    return higher, total, result


@triton.jit
def _came(
    query, top, total, result, k, v, begin, end, theirs, scale,
    D: tl.constexpr, DV: tl.constexpr, PAD: tl.constexpr, PAD_V: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Take in rows [begin, end) of what came for a block, of which the queries `theirs` [M] are."""
    within, at, at_v = tl.arange(0, N), tl.arange(0, PAD), tl.arange(0, PAD_V)
    for opens in range(begin, end, N):
        row = opens + within
        here, flat = row < end, row[:, None]
        keys = tl.load(k + flat * D + at[None, :], mask=here[:, None] & (at < D)[None, :], other=0.0)
        values = tl.load(v + flat * DV + at_v[None, :], mask=here[:, None] & (at_v < DV)[None, :], other=0.0)
        keys, values = keys.to(query.dtype), values.to(query.dtype)  # stores may have fewer bits
        logit = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        top, total, result = _attended(logit, top, total, result, values, theirs[:, None] & here[None, :])
    return top, total, result


@triton.jit
def _splits(count, prefix, programs, PER_TILE: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr):
    """Parts of what a head holds, so that `programs` of them for each tile are at work at once."""
    tiles = tl.maximum(tl.cdiv(count, PER_TILE), 1)
    return tl.maximum(tl.minimum(tl.minimum(programs // tiles, prefix // LEAST), SPLITS), 1)


@triton.jit(
    do_not_specialize=["first", "window", "run", "sink", "ring", "programs", "all_heads", "n_heads", "each", "block"]
)
def _append(
    q, k, v, hot_k, hot_v, heads, cap, page_start, page_list, out, partial, weight, numbers, arrived_k, arrived_v,
    comes, indexed, q_stride, k_stride, v_stride, first, window, run, sink, ring, programs, scale, all_heads, n_heads,
    each, block,
    GROUP: tl.constexpr, PADDED: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, PAD: tl.constexpr,
    PAD_V: tl.constexpr, P: tl.constexpr, M: tl.constexpr, N: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr,
    RUN: tl.constexpr, HEADS: tl.constexpr, MORE: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    tile, which, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count, opening = tl.load(numbers), tl.load(numbers + 1)
    prefix, reached = tl.load(numbers + 2), tl.load(numbers + 3)
    splits = _splits(count, prefix, programs, M // PADDED, SPLITS, LEAST)
    if (tile * (M // PADDED) >= count) | (split >= splits):
        return
    begins = (reached - window) // run * run
    head = tl.load(heads + which)
    row, within, at, at_v = tl.arange(0, M), tl.arange(0, N), tl.arange(0, PAD), tl.arange(0, PAD_V)
    token, member = tile * (M // PADDED) + row // PADDED, row % PADDED
    real = (token < count) & (member < GROUP)
    asked = head * GROUP + member
    mine = q + (opening + token).to(tl.int64) * q_stride + asked * D
    query = tl.load(mine[:, None] + at[None, :], mask=real[:, None] & (at < D)[None, :], other=0.0).to(TYPE)
    kept, start = tl.load(cap + first + which), tl.load(page_start + first + which)
    turning = tl.maximum(tl.minimum(kept - sink, ring), 1)
    full = kept < reached
    fixed = tl.where(full, kept - turning, prefix)  # rows before the ring's
    held = tl.where(full, fixed + prefix - begins, prefix)
    top = tl.full([M], _NOTHING, tl.float32)
    total = tl.zeros([M], tl.float32)
    result = tl.zeros([M, PAD_V], tl.float32)
    begin, end = span(held, split, splits, N)
    for opens in range(begin, end, N):
        place = opens + within
        here = place < end
        place = tl.where(place < fixed, place, ring_row(begins + place - fixed, kept, sink, ring))
        page = tl.load(page_list + start + place // P, mask=here, other=0).to(tl.int64)
        flat = (page * P + place % P)[:, None]
        keys = tl.load(hot_k + flat * D + at[None, :], mask=here[:, None] & (at < D)[None, :], other=0.0)
        values = tl.load(hot_v + flat * DV + at_v[None, :], mask=here[:, None] & (at_v < DV)[None, :], other=0.0)
        keys, values = keys.to(query.dtype), values.to(query.dtype)  # stores may have fewer bits
        logit = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        top, total, result = _attended(logit, top, total, result, values, real[:, None] & here[None, :])
    if MORE:
        unit = indexed_head(indexed, head, n_heads, HEADS)
        last = (tl.minimum((tile + 1) * (M // PADDED), count) - 1) // block
        if unit >= 0:
            for mine_of in range(tile * (M // PADDED) // block, last + 1):
                unit_of = mine_of * n_heads + unit
                opens, ends = span(tl.load(comes + unit_of) * RUN, split, splits, N)
                theirs, begins_at = real & (token // block == mine_of), unit_of.to(tl.int64) * each
                top, total, result = _came(
                    query, top, total, result, arrived_k + begins_at * D, arrived_v + begins_at * DV, opens, ends,
                    theirs, scale, D, DV, PAD, PAD_V, N,
                )  # fmt: skip
    if split == splits - 1:
        last = opening + tl.minimum((tile + 1) * (M // PADDED), count)
        own_k, own_v = k + head * D, v + head * DV
        for opens in range(0, last, N):
            new = opens + within
            here, where = new < last, new.to(tl.int64)[:, None]
            keys = tl.load(own_k + where * k_stride + at[None, :], mask=here[:, None] & (at < D)[None, :], other=0.0)
            there = here[:, None] & (at_v < DV)[None, :]
            values = tl.load(own_v + where * v_stride + at_v[None, :], mask=there, other=0.0)
            keys, values = keys.to(TYPE), values.to(TYPE)
            logit = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
            seen = real[:, None] & here[None, :] & (new[None, :] <= opening + token[:, None])
            top, total, result = _attended(logit, top, total, result, values, seen)
    some = total > 0
    result = result / tl.where(some, total, 1.0)[:, None]
    number = token.to(tl.int64) * all_heads + asked
    inside = real[:, None] & (at_v < DV)[None, :]
    if splits == 1:
        number += opening.to(tl.int64) * all_heads
        tl.store(out + number[:, None] * DV + at_v[None, :], result.to(out.dtype.element_ty), mask=inside)
    else:
        number += split.to(tl.int64) * count * all_heads
        tl.store(partial + number[:, None] * DV + at_v[None, :], result, mask=inside)
        tl.store(weight + number, tl.where(some, top + tl.log2(tl.where(some, total, 1.0)), _NOTHING), mask=real)


@triton.jit(do_not_specialize=["programs", "all_heads"])
def _merge(
    out, partial, weight, numbers, programs, all_heads, DV: tl.constexpr, PAD_V: tl.constexpr, ROWS: tl.constexpr,
    PER_TILE: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    count, opening, prefix = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    splits, rows = _splits(count, prefix, programs, PER_TILE, SPLITS, LEAST), count * all_heads
    if (splits == 1) | (tl.program_id(0) * ROWS >= rows):
        return
    row, at = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, PAD_V)
    here = row < rows
    inside = here[:, None] & (at < DV)[None, :]
    top = tl.full([ROWS], _NOTHING, tl.float32)
    for split in range(splits):
        top = tl.maximum(top, tl.load(weight + split * rows + row, mask=here, other=_NOTHING))
    total = tl.zeros([ROWS], tl.float32)
    result = tl.zeros([ROWS, PAD_V], tl.float32)
    for split in range(splits):
        share = tl.exp2(tl.load(weight + split * rows + row, mask=here, other=_NOTHING) - top)
        place = (split * rows + row).to(tl.int64)
        result += tl.load(partial + place[:, None] * DV + at[None, :], mask=inside, other=0.0) * share[:, None]
        total += share
    result = result / total[:, None]
    to = opening.to(tl.int64) * all_heads + row
    tl.store(out + to[:, None] * DV + at[None, :], result.to(out.dtype.element_ty), mask=inside)


def append(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: LayerBuffers, step: StepTables, behind: Behind,
    scale: float, out: torch.Tensor, arrivals: Arrivals | None = None,
) -> None:  # fmt: skip
    """Attention of some of the new tokens q [n, Hq, D] over what their request's heads hold, what came for their block,
    and causally over k [n, H, D] and v [n, H, Dv], to `out` [n, Hq, Dv]. All heads are compressed; rows may lie apart.

    Block b of those that attend is the step's b-th request: there are no more of them. n may be more than there are."""
    all_heads, dim = q.shape[1:]
    heads, v_dim = layer.heads.numel(), v.shape[2]
    group, most = all_heads // k.shape[1], min(len(q), step.length.numel() * behind.block)
    padded = triton.next_power_of_2(group)
    wide = max(dim, v_dim) * q.element_size() > 256  # bytes of a row
    rows = max(16, padded, min(_QUERIES // (1 + wide), triton.next_power_of_2(most * padded)))
    each, programs = rows // padded, _programs(q.device) // heads
    tiles = triton.cdiv(most, each)
    splits = max(1, min(_SPLITS, programs))  # at most
    room = max(min(max(programs // n, 1), splits) * min(n * each, most) for n in range(1, tiles + 1))
    partial = q.new_empty(room, all_heads, v_dim, dtype=torch.float32)
    weight = q.new_empty(room, all_heads, dtype=torch.float32)
    parts = dict(SPLITS=splits, LEAST=_LEAST)
    came, n_heads, theirs, run = (k, v, layer.heads, layer.heads), 0, 0, 1
    if arrivals is not None:
        work, indexed, run = arrivals.work, arrivals.layer.heads, arrivals.layer.run
        came, n_heads = (work.arrived_k, work.arrived_v, work.comes, indexed), indexed.numel()
        theirs = work.limit(step.length.numel() * n_heads, run) * run
    _append[(tiles, heads, splits)](
        q, k, v, layer.hot_k, layer.hot_v, layer.heads, step.cap, step.page_start, step.page_list, out, partial, weight,
        behind.numbers, *came, q.stride(0), k.stride(0), v.stride(0), layer.first, behind.window, behind.run,
        behind.sink, behind.ring, programs, scale * 1.4426950408889634, all_heads, n_heads, theirs, behind.block,
        GROUP=group, PADDED=padded, D=dim, DV=v_dim,
        PAD=max(16, triton.next_power_of_2(dim)), PAD_V=max(16, triton.next_power_of_2(v_dim)),
        P=layer.hot_k.shape[1], M=rows, N=_TOKENS if max(dim, v_dim) <= 128 else _TOKENS // 2, RUN=run,
        HEADS=triton.next_power_of_2(heads), MORE=arrivals is not None,
        TYPE=computed(q.dtype, layer.hot_k.dtype),
        num_warps=8 if max(dim, v_dim) > 64 else 4, num_stages=2 if wide else 3, **parts,
    )  # fmt: skip
    if splits > 1:
        _merge[(triton.cdiv(most * all_heads, _MERGED),)](
            out, partial, weight, behind.numbers, programs, all_heads, DV=v_dim,
            PAD_V=max(16, triton.next_power_of_2(v_dim)), ROWS=_MERGED, PER_TILE=each, **parts,
        )  # fmt: skip


def _programs(device: torch.device) -> int:
    """That run at once."""
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 64


@triton.jit(do_not_specialize=["first", "sink", "ring"])
def _keep(
    k, v, hot_k, hot_v, position, score, heads, cap, page_start, page_list, numbers, k_stride, v_stride, first, sink,
    ring, D: tl.constexpr, DV: tl.constexpr, PAD: tl.constexpr, PAD_V: tl.constexpr, P: tl.constexpr,
    TOKENS: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    which, count, prefix = tl.program_id(1), tl.load(numbers), tl.load(numbers + 2)
    if tl.program_id(0) * TOKENS >= count:
        return
    head = tl.load(heads + which)
    new, at, at_v = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, PAD), tl.arange(0, PAD_V)
    token = prefix + new
    kept, start = tl.load(cap + first + which), tl.load(page_start + first + which)
    turning = tl.maximum(tl.minimum(kept - sink, ring), 1)
    stays = (new < count) & ((token < kept - turning) | (token >= prefix + count - turning))
    place = ring_row(token, kept, sink, ring)
    page = tl.load(page_list + start + place // P, mask=stays, other=0).to(tl.int64)
    flat, new = page * P + place % P, new.to(tl.int64)
    here, here_v = stays[:, None] & (at < D)[None, :], stays[:, None] & (at_v < DV)[None, :]
    keys = narrowed(tl.load(k + new[:, None] * k_stride + head * D + at[None, :], mask=here), MOST)
    values = narrowed(tl.load(v + new[:, None] * v_stride + head * DV + at_v[None, :], mask=here_v), MOST)
    tl.store(hot_k + flat[:, None] * D + at[None, :], keys, mask=here)
    tl.store(hot_v + flat[:, None] * DV + at_v[None, :], values, mask=here_v)
    tl.store(position + flat, token, mask=stays)
    tl.store(score + flat, tl.zeros([TOKENS], tl.float32), mask=stays)


def keep(k: torch.Tensor, v: torch.Tensor, layer: LayerBuffers, step: StepTables, behind: Behind) -> None:
    """After `append`, for all at once: new tokens k [n, H, D], v [n, H, Dv] take the rows of those that leave their
    request's heads; of two that have the same row, the later. There may be more rows than tokens, as for `append`."""
    most, _, dim = k.shape
    v_dim, each = v.shape[2], 16
    _keep[(triton.cdiv(most, each), layer.heads.numel())](
        k, v, layer.hot_k, layer.hot_v, layer.position, layer.score, layer.heads, step.cap, step.page_start,
        step.page_list, behind.numbers, k.stride(0), v.stride(0), layer.first, behind.sink, behind.ring, D=dim,
        DV=v_dim, PAD=triton.next_power_of_2(dim), PAD_V=triton.next_power_of_2(v_dim), P=layer.hot_k.shape[1],
        TOKENS=each, MOST=largest(layer.hot_k.dtype), num_warps=4,
    )  # fmt: skip
