"""Rows that come, read from pinned host memory, and their places. Twins of ops/reference/swap_in.py.

Programs are small: they wait for the link to the host, and leave the step beside its processors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from hetero_sglang.cache.host_store import BLOCK
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.ops.base import LayerBuffers, LayerIndex, StepTables
from hetero_sglang.ops.triton.early import early, overlaps
from hetero_sglang.ops.triton.workspace import MOST_SPLITS, Workspace

PROGRAMS = 256  # at least, beside a step; of one warp each
ALONE = 32  # with the device to themselves
_ROWS = {1: 4, 4: 16, 8: 16}  # by run: rows under way at once in a program


@triton.jit
def _listed(lists, counts, unit, splits, number, room, MOST: tl.constexpr):
    """Entry `number` [n] of a unit's lists, which follow each other by splits; and how many there are in all."""
    part = tl.arange(0, MOST)
    count = tl.load(counts + unit * splits + part, mask=part < splits, other=0)
    upto, total = tl.cumsum(count, 0), tl.sum(count, 0)
    split = tl.sum((upto[None, :] <= number[:, None]).to(tl.int32), 1)
    before = tl.sum(tl.where(part[None, :] < split[:, None], count[None, :], 0), 1)
    there = (number >= 0) & (number < total)
    return tl.load(lists + (unit * splits + split) * room + number - before, mask=there, other=0), total


@triton.jit(do_not_specialize=["n_heads", "stored", "splits", "caps_per_request", "first", "sink", "room", "limit"])
def _swap_in(
    length, which, page_start, page_list, slots, starts, missing, lacking, old, olds, level, levels, comes, host,
    to_k, to_v, position, used, arrived, even, evens, scores, place_of, splits, caps_per_request, first, sink, room,
    limit, n_heads, stored,
    RUN: tl.constexpr, P: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr, MOST: tl.constexpr, PAIRS: tl.constexpr, MERGED: tl.constexpr, ASIDE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Some of the runs that come to a unit, each with the place it takes: their rows, and what is known of these."""
    unit, some, step = tl.program_id(0), tl.program_id(1) * PAIRS, tl.num_programs(1) * PAIRS
    request, head = unit // n_heads, tl.load(which + unit % n_heads)
    start = tl.load(page_start + request * caps_per_request + first + head)
    tokens, listed = tl.load(length + request), slots + tl.load(starts + request).to(tl.int64)
    within, at, at_v = tl.arange(0, RUN)[None, :], tl.arange(0, BLOCK_D)[None, :], tl.arange(0, BLOCK_DV)[None, :]
    if PDL:
        gdc_wait()
    come = tl.load(comes + unit)
    for opening in range(some, come, step):
        pair = opening + tl.arange(0, PAIRS)
        run, sure = _listed(missing, lacking, unit, splits, pair, room, MOST)
        more, _ = _listed(even, evens, unit, splits, pair - sure, room, MOST)
        older, total = _listed(old, olds, unit, splits, pair, room, MOST)
        same, _ = _listed(level, levels, unit, splits, pair - total, room, MOST)
        # Their rows: [PAIRS, RUN], then one after the other.
        token = tl.where(pair < sure, run, more)[:, None] * RUN + within
        there = (pair < come)[:, None] & (within >= 0)
        row = sink + tl.where(pair < total, older, same)[:, None] * RUN + within
        slot = tl.load(listed + token, mask=there, other=0).to(tl.int64)
        page = tl.load(page_list + start + row // P, mask=there, other=0).to(tl.int64)
        to = page * P + row % P
        source = (slot // BLOCK * stored + head) * BLOCK + slot % BLOCK
        tl.store(position + to, token, mask=there)
        if MERGED:
            mine = scores + tl.load(place_of + request).to(tl.int64) * n_heads + unit % n_heads * tokens
            tl.store(used + to, tl.load(mine + token, mask=there, other=0.0), mask=there)
        else:
            tl.store(used + to, tokens + token * 0, mask=there)
        if ASIDE:
            beside = (unit * limit + pair)[:, None] * RUN + within
            tl.store(arrived + beside, to, mask=there)
            to = beside.to(tl.int64)
        source = tl.reshape(source, [PAIRS * RUN])[:, None] * (D + DV)  # wide loads: a multiple
        to, mask = tl.reshape(to, [PAIRS * RUN])[:, None], tl.reshape(there, [PAIRS * RUN])[:, None]
        key = tl.load(host + source + at, mask=mask & (at < D))
        value = tl.load(host + source + D + at_v, mask=mask & (at_v < DV))
        tl.store(to_k + to * D + at, key, mask=mask & (at < D))
        tl.store(to_v + to * DV + at_v, value, mask=mask & (at_v < DV))


def swap_in(
    layer: LayerBuffers | LayerIndex, host: torch.Tensor, slots: torch.Tensor, starts: torch.Tensor, step: StepTables,
    hot: HotPool, sink: int, work: Workspace, programs: int = PROGRAMS, merged: bool = False,
) -> None:  # fmt: skip
    """After `choose`: bring the rows of every run that comes; host [blocks, C, BLOCK, D + Dv], the layer's.

    To their places, or beside them until `seat` where heads attend meanwhile.
    """
    heads, aside = layer.heads.numel(), work.aside
    units = step.length.numel() * heads
    dim, v_dim, pdl = hot.k.shape[-1], hot.v.shape[-1], overlaps(slots.device)
    _swap_in[(units, triton.cdiv(programs, units))](
        step.length, layer.which, step.page_start, step.page_list, slots, starts, work.missing, work.lacking, work.old,
        work.olds, work.level, work.levels, work.comes, host, work.arrived_k if aside else hot.k,
        work.arrived_v if aside else hot.v, hot.position, hot.score if merged else hot.used, work.arrived, work.even,
        work.evens, work.scores, work.place, work.splits(units), step.cap.shape[1], layer.first, sink, work.room,
        work.limit(units),
        n_heads=heads, stored=host.shape[1], RUN=work.run, P=hot.page_size, D=dim, DV=v_dim, BLOCK=BLOCK,
        BLOCK_D=triton.next_power_of_2(dim), BLOCK_DV=triton.next_power_of_2(v_dim), MOST=MOST_SPLITS,
        PAIRS=_ROWS[work.run] // work.run, MERGED=merged, ASIDE=aside, PDL=pdl, num_warps=1, **early(pdl),
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
    units = step.length.numel() * layer.heads.numel()
    dim, v_dim = hot.k.shape[-1], hot.v.shape[-1]
    _seat[(units,)](
        work.comes, work.arrived, work.arrived_k, work.arrived_v, hot.k, hot.v, work.limit(units) * work.run,
        RUN=work.run, D=dim, DV=v_dim, BLOCK_D=triton.next_power_of_2(dim), BLOCK_DV=triton.next_power_of_2(v_dim),
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

    Slots may lie anywhere; where they follow each other a head's rows are read together.
    """
    n, (_, heads, _, size) = slots.numel(), host.shape
    if n and heads:
        _bring[(programs,)](
            host, slots, out, n, n_heads=heads, SIZE=size, BLOCK=BLOCK, BLOCK_SIZE=triton.next_power_of_2(size),
            ROWS=64, num_warps=8,
        )  # fmt: skip
