"""Rows that come: read from pinned host memory by a few programs, into the places that were given away.

Few programs with many rows each: the link to the host is full with those, and the step beside keeps its processors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from hetero_sglang.attention.kernels.store import StepTables
from hetero_sglang.memory.host_store import BLOCK
from hetero_sglang.memory.hot_pool import HotPool
from hetero_sglang.ops.triton.probe import LayerIndex
from hetero_sglang.ops.triton.workspace import MOST_SPLITS, Workspace

PROGRAMS = 8
_ROWS = 32  # under way at once in a program


@triton.jit
def _listed(lists, counts, unit, number, splits, room, SPLITS: tl.constexpr, MOST: tl.constexpr):
    """Entry `number` [n] of a unit's lists, which follow each other by splits; and how many there are in all."""
    part = tl.arange(0, SPLITS)
    count = tl.load(counts + unit[:, None] * MOST + part[None, :], mask=part[None, :] < splits, other=0)  # [n, SPLITS]
    upto = tl.cumsum(count, 1)
    split = tl.sum((upto <= number[:, None]).to(tl.int32), 1)
    before = tl.sum(tl.where(part[None, :] < split[:, None], count, 0), 1)
    total = tl.sum(count, 1)
    there = (number >= 0) & (number < total)
    entry = tl.load(lists + (unit * MOST + split) * room + number - before, mask=there, other=0)
    return entry, total


@triton.jit(do_not_specialize=["units", "caps_per_request", "first", "splits", "sink", "room"])
def _swap_in(
    length, page_start, page_list, slots, starts, missing, lacking, old, olds, level, levels, comes, host,
    hot_k, hot_v, position, used, units, caps_per_request, first, splits, sink, room,
    HEADS: tl.constexpr, RUN: tl.constexpr, P: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, UNITS: tl.constexpr, SPLITS: tl.constexpr, MOST: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    every = tl.arange(0, UNITS)
    come = tl.load(comes + every, mask=every < units, other=0)
    upto = tl.cumsum(come, 0)  # [UNITS] pairs of units up to this one
    rows = tl.sum(come, 0) * RUN
    at, at_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    for opening in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        number = opening + tl.arange(0, ROWS)
        here = number < rows
        pair, within = number // RUN, number % RUN
        unit = tl.sum((upto[None, :] <= pair[:, None]).to(tl.int32), 1)
        unit = tl.where(here, unit, 0)
        pair -= tl.sum(tl.where(every[None, :] < unit[:, None], come[None, :], 0), 1)
        request = unit // HEADS
        run, _ = _listed(missing, lacking, unit, pair, splits, room, SPLITS, MOST)
        older, total = _listed(old, olds, unit, pair, splits, room, SPLITS, MOST)
        same, _ = _listed(level, levels, unit, pair - total, splits, room, SPLITS, MOST)
        place = tl.where(pair < total, older, same)
        row = sink + place * RUN + within
        start = tl.load(page_start + request * caps_per_request + first + unit % HEADS, mask=here, other=0)
        to = tl.load(page_list + start + row // P, mask=here, other=0).to(tl.int64) * P + row % P
        token = run * RUN + within
        slot = tl.load(slots + tl.load(starts + request, mask=here, other=0).to(tl.int64) + token, mask=here, other=0)
        slot = slot.to(tl.int64)
        place_in = (slot // BLOCK * HEADS + unit % HEADS) * BLOCK + slot % BLOCK
        place_in = tl.multiple_of(place_in * (D + DV), 16)
        key = tl.load(host + place_in[:, None] + at[None, :], mask=here[:, None] & (at < D)[None, :])
        value = tl.load(host + place_in[:, None] + D + at_v[None, :], mask=here[:, None] & (at_v < DV)[None, :])
        tl.store(hot_k + to[:, None] * D + at[None, :], key, mask=here[:, None] & (at < D)[None, :])
        tl.store(hot_v + to[:, None] * DV + at_v[None, :], value, mask=here[:, None] & (at_v < DV)[None, :])
        tl.store(position + to, token, mask=here)
        tl.store(used + to, tl.load(length + request, mask=here, other=0), mask=here)


def swap_in(
    layer: LayerIndex, host: torch.Tensor, slots: torch.Tensor, starts: torch.Tensor, step: StepTables, hot: HotPool,
    sink: int, work: Workspace, programs: int = PROGRAMS,
) -> None:  # fmt: skip
    """After `choose`: bring the rows of every run that comes; host [blocks, C, BLOCK, D + Dv], the layer's."""
    heads = layer.heads.numel()
    units = step.length.numel() * heads
    dim, v_dim = hot.k.shape[-1], hot.v.shape[-1]
    _swap_in[(programs,)](
        step.length, step.page_start, step.page_list, slots, starts, work.missing, work.lacking, work.old, work.olds,
        work.level, work.levels, work.comes, host, hot.k, hot.v, hot.position, hot.used, units, step.cap.shape[1],
        layer.first, work.splits(units), sink, work.room,
        HEADS=heads, RUN=work.run, P=hot.page_size, D=dim, DV=v_dim, BLOCK=BLOCK,
        BLOCK_D=triton.next_power_of_2(dim), BLOCK_DV=triton.next_power_of_2(v_dim),
        UNITS=triton.next_power_of_2(units), SPLITS=MOST_SPLITS, MOST=MOST_SPLITS, ROWS=_ROWS, num_warps=8,
    )  # fmt: skip
