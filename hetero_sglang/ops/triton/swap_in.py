"""Rows that come: read from pinned host memory by a few programs. Twins of ops/reference/swap_in.py.

Few programs with many rows each: the link to the host is full with those, and the step beside keeps its processors.
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
from hetero_sglang.ops.triton.workspace import Workspace

PROGRAMS = 16  # beside a step
ALONE = 32  # with the device to themselves
_ROWS = {1: 32, 4: 64, 8: 64}  # by run: rows under way at once in a program
_UNITS = 64  # whose counts a program looks through at once


@triton.jit
def _listed(lists, counts, unit, number, room, SPLITS: tl.constexpr):
    """Entry `number` [n] of a unit's lists, which follow each other by splits; and how many there are in all."""
    part = tl.arange(0, SPLITS)
    count = tl.load(counts + unit[:, None] * SPLITS + part[None, :])  # [n, SPLITS]
    upto = tl.cumsum(count, 1)
    split = tl.sum((upto <= number[:, None]).to(tl.int32), 1)
    before = tl.sum(tl.where(part[None, :] < split[:, None], count, 0), 1)
    total = tl.sum(count, 1)
    there = (number >= 0) & (number < total)
    entry = tl.load(lists + (unit * SPLITS + split) * room + number - before, mask=there, other=0)
    return entry, total


@triton.jit
def _pair(
    opening, base, come, length, which, page_start, page_list, slots, starts, missing, lacking, old, olds, level,
    levels, position, used, even, evens, scores, place_of, caps_per_request, first, sink, room,
    n_heads, stored, RUN: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
    UNITS: tl.constexpr, SPLITS: tl.constexpr, PAIRS: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """The next runs and their places: host rows, flat hot rows [PAIRS * RUN] int64, and which there are. What is known
    of the rows beside their content is written."""
    upto, every, within = tl.cumsum(come, 0), tl.arange(0, UNITS), tl.arange(0, RUN)
    pair = opening + tl.arange(0, PAIRS)
    here = pair < tl.sum(come, 0)
    number = tl.sum((upto[None, :] <= pair[:, None]).to(tl.int32), 1)
    pair -= tl.sum(tl.where(every[None, :] < number[:, None], come[None, :], 0), 1)
    unit = tl.where(here, base + number, 0)
    request = unit // n_heads
    run, sure = _listed(missing, lacking, unit, pair, room, SPLITS)
    more, _ = _listed(even, evens, unit, pair - sure, room, SPLITS)
    run = tl.where(pair < sure, run, more)
    older, total = _listed(old, olds, unit, pair, room, SPLITS)
    same, _ = _listed(level, levels, unit, pair - total, room, SPLITS)
    head = tl.load(which + unit % n_heads)
    start = tl.load(page_start + request * caps_per_request + first + head, mask=here, other=0)
    now = tl.load(length + request, mask=here, other=0)
    listed = slots + tl.load(starts + request, mask=here, other=0).to(tl.int64)
    # Their rows: [PAIRS, RUN], then one after the other.
    token = run[:, None] * RUN + within[None, :]
    there = here[:, None] & (within >= 0)[None, :]
    row = sink + tl.where(pair < total, older, same)[:, None] * RUN + within[None, :]
    page = tl.load(page_list + start[:, None] + row // P, mask=there, other=0).to(tl.int64)
    slot = tl.load(listed[:, None] + token, mask=there, other=0).to(tl.int64)
    to = page * P + row % P
    tl.store(position + to, token, mask=there)
    if MERGED:
        mine = tl.load(place_of + request, mask=here, other=0).to(tl.int64) * n_heads + unit % n_heads * now
        tl.store(used + to, tl.load(scores + mine[:, None] + token, mask=there, other=0.0), mask=there)
    else:
        tl.store(used + to, now[:, None] + within[None, :] * 0, mask=there)
    source = (slot // BLOCK * stored + head[:, None]) * BLOCK + slot % BLOCK
    return tl.reshape(source, [PAIRS * RUN]), tl.reshape(to, [PAIRS * RUN]), tl.reshape(there, [PAIRS * RUN])


@triton.jit(do_not_specialize=["n_heads", "stored", "units", "caps_per_request", "first", "sink", "room"])
def _swap_in(
    length, which, page_start, page_list, slots, starts, missing, lacking, old, olds, level, levels, comes, host,
    hot_k, hot_v, position, used, even, evens, scores, place_of, units, caps_per_request, first, sink, room,
    n_heads, stored, RUN: tl.constexpr, P: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, UNITS: tl.constexpr, SPLITS: tl.constexpr,
    PAIRS: tl.constexpr, MERGED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_wait()
    at, at_v = tl.arange(0, BLOCK_D)[None, :], tl.arange(0, BLOCK_DV)[None, :]
    begin, step = tl.program_id(0) * PAIRS, tl.num_programs(0) * PAIRS
    for base in range(0, units, UNITS):
        every = base + tl.arange(0, UNITS)
        come = tl.load(comes + every, mask=every < units, other=0)
        pairs = tl.sum(come, 0)
        if begin < pairs:
            source, to, there = _pair(
                begin, base, come, length, which, page_start, page_list, slots, starts, missing, lacking, old, olds,
                level, levels, position, used, even, evens, scores, place_of, caps_per_request, first, sink, room,
                n_heads, stored, RUN, P, BLOCK, UNITS, SPLITS, PAIRS, MERGED,
            )  # fmt: skip
            for opening in range(begin, pairs, step):
                row, hot, mask = source[:, None] * (D + DV), to[:, None], there[:, None]  # wide loads: a multiple
                key = tl.load(host + row + at, mask=mask & (at < D))
                value = tl.load(host + row + D + at_v, mask=mask & (at_v < DV))
                if opening + step < pairs:  # found out while these are on their way
                    source, to, there = _pair(
                        opening + step, base, come, length, which, page_start, page_list, slots, starts, missing,
                        lacking, old, olds, level, levels, position, used, even, evens, scores, place_of,
                        caps_per_request, first, sink, room, n_heads, stored, RUN, P, BLOCK, UNITS, SPLITS, PAIRS,
                        MERGED,
                    )  # fmt: skip
                tl.store(hot_k + hot * D + at, key, mask=mask & (at < D))
                tl.store(hot_v + hot * DV + at_v, value, mask=mask & (at_v < DV))


def swap_in(
    layer: LayerBuffers | LayerIndex, host: torch.Tensor, slots: torch.Tensor, starts: torch.Tensor, step: StepTables,
    hot: HotPool, sink: int, work: Workspace, programs: int = PROGRAMS, merged: bool = False,
) -> None:  # fmt: skip
    """After `choose`: bring the rows of every run that comes; host [blocks, C, BLOCK, D + Dv], the layer's."""
    heads = layer.heads.numel()
    units = step.length.numel() * heads
    dim, v_dim, pdl = hot.k.shape[-1], hot.v.shape[-1], overlaps(slots.device)
    _swap_in[(programs,)](
        step.length, layer.which, step.page_start, step.page_list, slots, starts, work.missing, work.lacking, work.old,
        work.olds, work.level, work.levels, work.comes, host, hot.k, hot.v, hot.position,
        hot.score if merged else hot.used, work.even, work.evens, work.scores, work.place, units, step.cap.shape[1],
        layer.first, sink, work.room,
        n_heads=heads, stored=host.shape[1], RUN=work.run, P=hot.page_size, D=dim, DV=v_dim, BLOCK=BLOCK,
        BLOCK_D=triton.next_power_of_2(dim), BLOCK_DV=triton.next_power_of_2(v_dim),
        UNITS=_UNITS, SPLITS=work.splits(units), PAIRS=_ROWS[work.run] // work.run,
        MERGED=merged, PDL=pdl, num_warps=8, **early(pdl),
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
