"""Rows that come, read from pinned host memory, and their places. Twins of ops/reference/swap_in.py.

Programs are small: they wait for the link to the host, and leave the step beside its processors."""

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import gdc_wait

from hetero_sglang.cache.host_layout import BLOCK
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.ops.base import LayerBuffers, StepTables
from hetero_sglang.ops.triton.early import early, overlaps
from hetero_sglang.ops.triton.workspace import MOST_SPLITS, Workspace

# At most, beside a step, of a warp each: one brings a run or some. The interpreter runs them one by one.
PROGRAMS = 16 if knobs.runtime.interpret else 1024
ALONE = 32  # with the device to themselves


@triton.jit
def _counts(counts, unit, splits, MOST: tl.constexpr):
    """Entries [MOST] of each of a unit's lists."""
    part = tl.arange(0, MOST)
    return tl.load(counts + unit * splits + part, mask=part < splits, other=0)


@triton.jit
def _entry(lists, count, unit, splits, number, room, MOST: tl.constexpr):
    """Entry `number` of a unit's lists, which follow each other by splits."""
    part = tl.arange(0, MOST)
    split = tl.sum((tl.cumsum(count, 0) <= number).to(tl.int32), 0)
    before = tl.sum(tl.where(part < split, count, 0), 0)
    return tl.load(lists + (unit * splits + split) * room + number - before, mask=split < splits, other=0)


@triton.jit
def _count(came, told, where, rows, TOLD: tl.constexpr):
    """So many more rows have come. Told by the only program of a unit's head that does: the host reads it later."""
    before = tl.atomic_add(came + where, rows, sem="relaxed")
    if TOLD:
        tl.store(told + where, before + rows)


@triton.jit(do_not_specialize=["n_heads", "stored", "splits", "caps_per_request", "all_heads", "first", "sink", "room",
                               "limit"])  # fmt: skip
def _swap_in(
    length, which, page_start, page_list, slots, starts, missing, lacking, old, olds, level, levels, comes, lates, host,
    to_k, to_v, position, used, arrived, even, evens, scores, place_of, request_slot, came, told, splits,
    caps_per_request, all_heads, first, sink, room, limit, n_heads, stored,
    RUN: tl.constexpr, P: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr, MOST: tl.constexpr, MERGED: tl.constexpr, ASIDE: tl.constexpr,
    PASSING: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Some of the runs that come to a unit, each with the place it takes: their rows, and what is known of these."""
    unit = tl.program_id(0)
    request, head = unit // n_heads, tl.load(which + unit % n_heads)
    start = tl.load(page_start + request * caps_per_request + first + head)
    tokens, listed = tl.load(length + request), slots + tl.load(starts + request).to(tl.int64)
    within, at, at_v = tl.arange(0, RUN), tl.arange(0, BLOCK_D)[None, :], tl.arange(0, BLOCK_DV)[None, :]
    if PDL:
        gdc_wait()
    come = tl.load(comes + unit)
    above, alike = _counts(lacking, unit, splits, MOST), _counts(evens, unit, splits, MOST)
    below, same = _counts(olds, unit, splits, MOST), _counts(levels, unit, splits, MOST)
    sure, older = tl.sum(above, 0), tl.sum(below, 0)
    for pair in range(tl.program_id(1), come, tl.num_programs(1)):
        if pair < sure:
            run = _entry(missing, above, unit, splits, pair, room, MOST)
        else:
            run = _entry(even, alike, unit, splits, pair - sure, room, MOST)
        token = run * RUN + within  # [RUN]
        slot = tl.load(listed + token).to(tl.int64)
        source = ((slot // BLOCK * stored + head) * BLOCK + slot % BLOCK) * (D + DV)  # wide loads: a multiple
        beside = (unit * limit + pair) * RUN + within
        to = beside.to(tl.int64)
        if not PASSING:
            if pair < older:
                place = _entry(old, below, unit, splits, pair, room, MOST)
            else:
                place = _entry(level, same, unit, splits, pair - older, room, MOST)
            row = sink + place * RUN + within
            seat = tl.load(page_list + start + row // P).to(tl.int64) * P + row % P
            tl.store(position + seat, token)
            if MERGED:
                mine = scores + tl.load(place_of + request).to(tl.int64) * n_heads + unit % n_heads * tokens
                tl.store(used + seat, tl.load(mine + token))
            else:
                tl.store(used + seat, tokens + within * 0)
            if ASIDE:
                tl.store(arrived + beside, seat)
            else:
                to = seat
        key = tl.load(host + source[:, None] + at, mask=at < D)
        value = tl.load(host + source[:, None] + D + at_v, mask=at_v < DV)
        tl.store(to_k + to[:, None] * D + at, key, mask=at < D)
        tl.store(to_v + to[:, None] * DV + at_v, value, mask=at_v < DV)
    if (tl.program_id(1) == 0) & (tokens > 0):  # after the rows, which heads wait for
        where = tl.load(request_slot + request).to(tl.int64) * 2 * all_heads + first + head
        _count(came, told, where, come * RUN, not PASSING)
        if not PASSING:
            _count(came, told, where + all_heads, tl.load(lates + unit) * RUN, True)


def swap_in(
    layer: LayerBuffers | LayerIndex, host: torch.Tensor, slots: torch.Tensor, starts: torch.Tensor, step: StepTables,
    hot: HotPool, sink: int, work: Workspace, programs: int = PROGRAMS, merged: bool = False, passing: bool = False,
) -> None:  # fmt: skip
    """After `choose`, or `lack` if `passing`: bring the rows of every run that comes; host [blocks, C, BLOCK, D + Dv],
    the layer's.

    To their places; beside them until `seat`, where heads attend meanwhile; or beside alone, if `passing`."""
    heads, aside = layer.heads.numel(), work.aside
    units = step.length.numel() * heads
    dim, v_dim, pdl = hot.k.shape[-1], hot.v.shape[-1], overlaps(slots.device)
    limit = work.limit(units, layer.run)
    _swap_in[(units, max(1, min(limit, programs // units)))](
        step.length, layer.which, step.page_start, step.page_list, slots, starts, work.missing, work.lacking, work.old,
        work.olds, work.level, work.levels, work.comes, work.lates, host, work.arrived_k if aside else hot.k,
        work.arrived_v if aside else hot.v, hot.position, hot.score if merged else hot.used, work.arrived, work.even,
        work.evens, work.scores, work.place, step.request, step.came, step.told, work.splits(units),
        step.cap.stride(0), step.came.shape[2], layer.first, sink, work.room, limit,
        n_heads=heads, stored=host.shape[1], RUN=layer.run, P=hot.page_size, D=dim, DV=v_dim, BLOCK=BLOCK,
        BLOCK_D=triton.next_power_of_2(dim), BLOCK_DV=triton.next_power_of_2(v_dim), MOST=MOST_SPLITS,
        MERGED=merged, ASIDE=aside, PASSING=passing, PDL=pdl, num_warps=1, **early(pdl),
    )  # fmt: skip


@triton.jit(do_not_specialize=["each"])
def _seat(
    comes, arrived, arrived_k, arrived_v, hot_k, hot_v, each,
    RUN: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0)
    at, at_v = tl.arange(0, BLOCK_D)[None, :], tl.arange(0, BLOCK_DV)[None, :]
    count = tl.load(comes + unit) * RUN
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        here, mine = row < count, unit.to(tl.int64) * each + row
        to, mask = tl.load(arrived + mine, mask=here, other=0)[:, None], here[:, None]
        key = tl.load(arrived_k + mine[:, None] * D + at, mask=mask & (at < D))
        value = tl.load(arrived_v + mine[:, None] * DV + at_v, mask=mask & (at_v < DV))
        tl.store(hot_k + to * D + at, key, mask=mask & (at < D))
        tl.store(hot_v + to * DV + at_v, value, mask=mask & (at_v < DV))


def seat(layer: LayerIndex, step: StepTables, hot: HotPool, work: Workspace) -> None:
    """After heads have attended: the rows that came meanwhile are put in their places."""
    units, run = step.length.numel() * layer.heads.numel(), layer.run
    dim, v_dim = hot.k.shape[-1], hot.v.shape[-1]
    _seat[(units,)](
        work.comes, work.arrived, work.arrived_k, work.arrived_v, hot.k, hot.v, work.limit(units, run) * run,
        RUN=run, D=dim, DV=v_dim, BLOCK_D=triton.next_power_of_2(dim), BLOCK_DV=triton.next_power_of_2(v_dim),
        ROWS=32, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n_heads", "n"])
def _bring(
    host, slots, out, n, n_heads, SIZE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, BLOCK_SIZE)
    for item in range(tl.program_id(0), tl.cdiv(n, ROWS) * n_heads, tl.num_programs(0)):
        head, token = item % n_heads, item // n_heads * ROWS + tl.arange(0, ROWS)
        slot = tl.load(slots + token, mask=token < n, other=0).to(tl.int64)
        source = ((slot // BLOCK * n_heads + head) * BLOCK + slot % BLOCK) * SIZE
        there = (token < n)[:, None] & (at < SIZE)[None, :]
        rows = tl.load(host + source[:, None] + at[None, :], mask=there)
        tl.store(out + ((token.to(tl.int64) * n_heads + head) * SIZE)[:, None] + at[None, :], rows, mask=there)


def bring(host: torch.Tensor, slots: torch.Tensor, out: torch.Tensor, programs: int = ALONE) -> None:
    """Rows of token slots [n] on the device to `out` [n, C, D + Dv]; host [blocks, C, BLOCK, D + Dv], a layer's.

    Slots may lie anywhere; where they follow each other a head's rows are read together."""
    n, (_, heads, _, size) = slots.numel(), host.shape
    if n and heads:
        _bring[(programs,)](
            host, slots, out, n, n_heads=heads, SIZE=size, BLOCK=BLOCK, BLOCK_SIZE=triton.next_power_of_2(size),
            ROWS=64, num_warps=8,
        )  # fmt: skip
