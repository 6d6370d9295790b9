"""The lazy rule on the device: twin of ops/reference/choose.py, over the scores that `probe` left in the workspace.

Three launches: places (which are wanted; the others by their last use), runs (wanted and not held), places again
(which are given away). What is listed is listed by splits in order, so the outcome depends on no timing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hetero_sglang.attention.kernels.store import StepTables
from hetero_sglang.memory.hot_pool import HotPool
from hetero_sglang.ops.reference.choose import BINS
from hetero_sglang.ops.triton.probe import LayerIndex, span
from hetero_sglang.ops.triton.workspace import TILE, Workspace

PART = 4  # a quarter of a head's places is what a step can want
_FINE, _NEVER = 20, 4096  # as the reference's


@triton.jit
def _edge(wanted, unit, places, low, high, PART: tl.constexpr, BINS: tl.constexpr):
    """The lowest bin whose runs are wanted: that of the best quarter's last."""
    bins = tl.arange(0, BINS)
    count = tl.load(wanted + unit * BINS + bins)
    above = tl.sum(count, 0) - tl.cumsum(count, 0) + count  # [BINS] runs of this bin and higher
    want = tl.minimum(tl.maximum(places // PART, 1), high - low)
    return tl.max(tl.where(above >= want, bins, 0), 0)


@triton.jit
def _used_bin(used, length, BINS: tl.constexpr, NEVER: tl.constexpr):
    """Bin of a place's last use: the lower, the longer it is unwanted."""
    half: tl.constexpr = BINS // 2
    never = tl.minimum(tl.maximum(used + NEVER, 0), half - 1)
    return tl.where(used < 0, never, BINS - 1 - tl.minimum(length - used, half - 1))


@triton.jit
def _place_row(page_list, start, place, here, sink, RUN: tl.constexpr, P: tl.constexpr):
    """Flat hot row of the first token of a selected run's place."""
    row = sink + place * RUN
    return tl.load(page_list + start + row // P, mask=here, other=0).to(tl.int64) * P + row % P


@triton.jit(do_not_specialize=["caps_per_request", "first", "splits", "runs_in_all", "sink", "window"])
def _hold(
    length, cap, page_start, page_list, position, used, scores, wanted, idle, hits,
    caps_per_request, first, splits, runs_in_all, sink, window,
    HEADS: tl.constexpr, RUN: tl.constexpr, P: tl.constexpr, BINS: tl.constexpr, TILE: tl.constexpr,
    PART: tl.constexpr, FINE: tl.constexpr, NEVER: tl.constexpr,
):  # fmt: skip
    """Places whose run is wanted are used now, and their runs no longer candidates; the others count by last use."""
    unit, split = tl.program_id(0), tl.program_id(1)
    request = unit // HEADS
    number = request * caps_per_request + first + unit % HEADS
    rows, tokens = tl.load(cap + number), tl.load(length + request)
    places = (rows - sink - window) // RUN
    if (tokens <= rows) | (places <= 0):
        return
    edge = _edge(wanted, unit, places, sink // RUN, (tokens - window) // RUN, PART, BINS)
    start = tl.load(page_start + number)
    begin, end = span(places, split, splits, TILE)
    counted = tl.zeros([BINS], tl.int32)
    for opening in range(begin, end, TILE):
        place = opening + tl.arange(0, TILE)
        here = place < end
        row = _place_row(page_list, start, place, here, sink, RUN, P)
        run = tl.load(position + row, mask=here, other=0) // RUN
        mine = scores + unit.to(tl.int64) * runs_in_all + run
        score = tl.load(mine, mask=here, other=-1.0)
        hit = here & ((score.to(tl.int32, bitcast=True) >> FINE) >= edge)
        tl.store(mine, -1.0, mask=hit)
        before = tl.load(used + row, mask=here, other=0)
        for within in tl.static_range(RUN):
            each = _place_row(page_list, start, place, here, sink + within, RUN, P)
            tl.store(used + each, tokens + place * 0, mask=hit)
        age = _used_bin(before, tokens, BINS, NEVER)
        # The last bin is of what is wanted now.
        counted += tl.histogram(tl.where(here & (hit == 0), age, BINS - 1), BINS)
    bins = tl.arange(0, BINS)
    tl.atomic_add(idle + unit * BINS + bins, counted, mask=(counted > 0) & (bins < BINS - 1), sem="relaxed")
    kept = tl.sum(tl.where(bins == BINS - 1, counted, 0), 0) - tl.cdiv(end - begin, TILE) * TILE + (end - begin)
    if begin < end:
        tl.atomic_add(hits + unit, kept, sem="relaxed")


@triton.jit(do_not_specialize=["caps_per_request", "first", "splits", "runs_in_all", "sink", "window", "room"])
def _lack(
    length, cap, scores, wanted, missing, lacking,
    caps_per_request, first, splits, runs_in_all, sink, window, room,
    HEADS: tl.constexpr, RUN: tl.constexpr, BINS: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr,
    FINE: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Runs that are wanted and not held, a split's first `room` listed, all counted."""
    unit, split = tl.program_id(0), tl.program_id(1)
    request = unit // HEADS
    rows, tokens = tl.load(cap + request * caps_per_request + first + unit % HEADS), tl.load(length + request)
    places = (rows - sink - window) // RUN
    count = 0
    if (tokens > rows) & (places > 0):
        low, high = sink // RUN, (tokens - window) // RUN
        edge = _edge(wanted, unit, places, low, high, PART, BINS)
        begin, end = span(high, split, splits, TILE)
        listed = missing + (unit * MOST + split) * room
        for opening in range(begin, end, TILE):
            run = opening + tl.arange(0, TILE)
            here = (run < end) & (run >= low)
            score = tl.load(scores + unit.to(tl.int64) * runs_in_all + run, mask=here, other=-1.0)
            lacks = here & ((score.to(tl.int32, bitcast=True) >> FINE) >= edge)
            at = count + tl.cumsum(lacks.to(tl.int32), 0) - 1
            tl.store(listed + at, run, mask=lacks & (at < room))
            count += tl.sum(lacks.to(tl.int32), 0)
    tl.store(lacking + unit * MOST + split, count)


@triton.jit(do_not_specialize=["caps_per_request", "first", "splits", "sink", "window", "room"])
def _leave(
    length, cap, page_start, page_list, used, idle, hits, lacking, most, old, olds, level, levels, comes, counted,
    caps_per_request, first, splits, sink, window, room,
    HEADS: tl.constexpr, RUN: tl.constexpr, P: tl.constexpr, BINS: tl.constexpr, TILE: tl.constexpr,
    SPLITS: tl.constexpr, NEVER: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Places that are given away: as many as runs come, longest unwanted first."""
    unit, split = tl.program_id(0), tl.program_id(1)
    request = unit // HEADS
    number = request * caps_per_request + first + unit % HEADS
    rows, tokens = tl.load(cap + number), tl.load(length + request)
    places = (rows - sink - window) // RUN
    come, older, same = 0, 0, 0
    if (tokens > rows) & (places > 0):
        part = tl.arange(0, SPLITS)
        lack = tl.sum(tl.load(lacking + unit * MOST + part, mask=part < splits, other=0), 0)
        free = places - tl.load(hits + unit)
        come = tl.minimum(tl.minimum(lack, free), tl.load(most))
        if split == 0:
            tl.atomic_add(counted, (come * RUN).to(tl.int64), sem="relaxed")
            tl.atomic_add(counted + 1, ((lack - come) * RUN).to(tl.int64), sem="relaxed")
        if come > 0:
            bins = tl.arange(0, BINS)
            count = tl.load(idle + unit * BINS + bins)
            edge = tl.min(tl.where(tl.cumsum(count, 0) >= come, bins, BINS), 0)
            start = tl.load(page_start + number)
            begin, end = span(places, split, splits, TILE)
            mine = (unit * MOST + split) * room
            for opening in range(begin, end, TILE):
                place = opening + tl.arange(0, TILE)
                here = place < end
                row = _place_row(page_list, start, place, here, sink, RUN, P)
                age = _used_bin(tl.load(used + row, mask=here, other=0), tokens, BINS, NEVER)
                below, equal = here & (age < edge), here & (age == edge)
                at = older + tl.cumsum(below.to(tl.int32), 0) - 1
                tl.store(old + mine + at, place, mask=below & (at < room))
                older += tl.sum(below.to(tl.int32), 0)
                at = same + tl.cumsum(equal.to(tl.int32), 0) - 1
                tl.store(level + mine + at, place, mask=equal & (at < room))
                same += tl.sum(equal.to(tl.int32), 0)
    tl.store(olds + unit * MOST + split, older)
    tl.store(levels + unit * MOST + split, same)
    if split == 0:
        tl.store(comes + unit, come)


def choose(
    layer: LayerIndex, step: StepTables, hot: HotPool, sink: int, window: int, work: Workspace
) -> None:  # fmt: skip
    """After `probe`: which runs come to which places, for every head that is full; `hot.used` is brought up to date.

    Of the runs that a split lists only the first that may come are there; `swap_in` reads no further.
    """
    heads = layer.heads.numel()
    units = step.length.numel() * heads
    splits = work.splits(units)
    per_request, most = step.cap.shape[1], work.top.shape[1]
    sizes = dict(HEADS=heads, RUN=work.run, BINS=BINS, TILE=TILE)
    _hold[(units, splits)](
        step.length, step.cap, step.page_start, step.page_list, hot.position, hot.used, work.scores, work.wanted,
        work.idle, work.hits, per_request, layer.first, splits, work.scores.shape[1], sink, window, **sizes,
        P=hot.page_size, PART=PART, FINE=_FINE, NEVER=_NEVER, num_warps=8,
    )  # fmt: skip
    _lack[(units, splits)](
        step.length, step.cap, work.scores, work.wanted, work.missing, work.lacking, per_request, layer.first, splits,
        work.scores.shape[1], sink, window, work.room, **sizes, PART=PART, FINE=_FINE, MOST=most, num_warps=8,
    )  # fmt: skip
    _leave[(units, splits)](
        step.length, step.cap, step.page_start, step.page_list, hot.used, work.idle, work.hits, work.lacking,
        work.most, work.old, work.olds, work.level, work.levels, work.comes, work.counted, per_request, layer.first,
        splits, sink, window, work.room, **sizes, P=hot.page_size, SPLITS=most, NEVER=_NEVER, MOST=most, num_warps=8,
    )  # fmt: skip
