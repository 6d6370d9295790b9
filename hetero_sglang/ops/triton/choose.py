"""The lazy rule on the device: twin of ops/reference/choose.py, over the scores that `probe` left in the workspace.

Two launches: places (which are wanted; the others by their last use); then, side by side, runs (wanted and not held)
and places again (which are given away). What is listed is listed by splits in order, so the outcome depends on no
timing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.ops.reference.choose import BINS, FINE, LEAST, NEVER, PART
from hetero_sglang.ops.triton.probe import LayerIndex, score_bin, span
from hetero_sglang.ops.triton.store import StepTables
from hetero_sglang.ops.triton.workspace import TILE, Workspace


@triton.jit
def _edge(wanted, unit, places, low, high, PART: tl.constexpr, BINS: tl.constexpr):
    """The lowest bin whose runs are wanted, that of the best quarter's last; and how many runs are."""
    bins = tl.arange(0, BINS)
    count = tl.load(wanted + unit * BINS + bins)
    above = tl.sum(count, 0) - tl.cumsum(count, 0) + count  # [BINS] runs of this bin and higher
    want = tl.minimum(tl.maximum(places // PART, 1), high - low)
    edge = tl.maximum(tl.max(tl.where(above >= want, bins, 0), 0), 1)  # none wants what no bin tells apart
    return edge, tl.sum(tl.where(bins >= edge, count, 0), 0)


@triton.jit
def _used_bin(used, length, BINS: tl.constexpr, FINE: tl.constexpr, NEVER: tl.constexpr):
    """Bin of a place's last use: the lower, the longer it is unwanted."""
    half: tl.constexpr = BINS // 2
    never = tl.minimum(tl.maximum((used + NEVER) >> 1, 0), half - 1)
    age = (tl.maximum(length - used, 1).to(tl.float32).to(tl.int32, bitcast=True) >> FINE) - 508
    return tl.where(used < 0, never, BINS - 1 - tl.minimum(age, half - 1))


@triton.jit
def _place_row(page_list, start, place, here, sink, RUN: tl.constexpr, P: tl.constexpr):
    """Flat hot row of the first token of a selected run's place."""
    row = sink + place * RUN
    return tl.load(page_list + start + row // P, mask=here, other=0).to(tl.int64) * P + row % P


@triton.jit
def _append(listed, count, what, mask, room):
    """List `what` where `mask`, after `count` others and as far as there is room; how many there are now."""
    at = count + tl.cumsum(mask.to(tl.int32), 0) - 1
    tl.store(listed + at, what, mask=mask & (at < room))
    return count + tl.sum(mask.to(tl.int32), 0)


@triton.jit(do_not_specialize=["caps_per_request", "first", "splits", "sink", "window"])
def _hold(
    length, cap, place_of, page_start, page_list, position, used, scores, wanted, idle, hits,
    caps_per_request, first, splits, sink, window,
    HEADS: tl.constexpr, RUN: tl.constexpr, P: tl.constexpr, BINS: tl.constexpr, TILE: tl.constexpr,
    PART: tl.constexpr, FINE: tl.constexpr, NEVER: tl.constexpr, LEAST: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Places whose run is wanted are used now, and their runs no longer candidates; the others count by last use."""
    unit, split = tl.program_id(0), tl.program_id(1)
    request = unit // HEADS
    number = request * caps_per_request + first + unit % HEADS
    rows, tokens = tl.load(cap + number), tl.load(length + request)
    places = (rows - sink - window) // RUN
    begins = tl.load(place_of + request)
    if (tokens <= rows) | (places <= 0) | (begins < 0):
        return
    scores += begins.to(tl.int64) * HEADS + unit % HEADS * tokens
    begin, end = span(places, split, splits, TILE)
    if begin >= end:
        return
    edge, _ = _edge(wanted, unit, places, sink // RUN, (tokens - window) // RUN, PART, BINS)
    start = tl.load(page_start + number)
    counted = tl.zeros([BINS], tl.int32)
    kept = 0
    for opening in range(begin, end, TILE):
        place = opening + tl.arange(0, TILE)
        here = place < end
        row = _place_row(page_list, start, place, here, sink, RUN, P)
        run = tl.load(position + row, mask=here, other=0) // RUN
        before = tl.load(used + row, mask=here, other=0)
        mine = scores + run
        score = tl.load(mine, mask=here, other=-1.0)
        hit = here & (score_bin(score, BINS, FINE, LEAST) >= edge)
        tl.store(mine, -1.0, mask=hit)
        for within in tl.static_range(RUN):
            each = row + within if TOGETHER else _place_row(page_list, start, place, hit, sink + within, RUN, P)
            tl.store(used + each, tokens + place * 0, mask=hit)
        kept += tl.sum(hit.to(tl.int32), 0)
        counted += tl.histogram(_used_bin(before, tokens, BINS, FINE, NEVER), BINS, mask=here & (hit == 0))
    bins = tl.arange(0, BINS)
    tl.atomic_add(idle + unit * BINS + bins, counted, mask=counted > 0, sem="relaxed")
    tl.atomic_add(hits + unit, kept, sem="relaxed")


@triton.jit(do_not_specialize=["caps_per_request", "first", "splits", "sink", "window", "room"])
def _exchange(
    length, cap, place_of, page_start, page_list, used, scores, wanted, idle, hits, most, missing, lacking,
    old, olds, level, levels, comes, counted, caps_per_request, first, splits, sink, window, room,
    HEADS: tl.constexpr, RUN: tl.constexpr, P: tl.constexpr, BINS: tl.constexpr,
    TILE: tl.constexpr, PART: tl.constexpr, FINE: tl.constexpr, NEVER: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """Half of the programs: runs that are wanted and not held. The others: places that are given away, as many as runs
    come, longest unwanted first. A split lists its first `room` and counts all."""
    unit, split, giving = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    request = unit // HEADS
    number = request * caps_per_request + first + unit % HEADS
    rows, tokens = tl.load(cap + number), tl.load(length + request)
    places = (rows - sink - window) // RUN
    low, high = sink // RUN, (tokens - window) // RUN
    come, lack, edge = 0, 0, 0
    begins = tl.load(place_of + request)
    if (tokens > rows) & (places > 0) & (begins >= 0):
        kept = tl.load(hits + unit)
        edge, lack = _edge(wanted, unit, places, low, high, PART, BINS)
        lack -= kept  # what is held lies where runs may come in
        come = tl.minimum(tl.minimum(lack, places - kept), tl.load(most))
    mine = unit * splits + split
    if giving == 0:
        count = 0
        if come > 0:
            scores += begins.to(tl.int64) * HEADS + unit % HEADS * tokens
            begin, end = span(high, split, splits, TILE)
            for opening in range(begin, end, TILE):
                run = opening + tl.arange(0, TILE)
                here = (run < end) & (run >= low)
                score = tl.load(scores + run, mask=here, other=-1.0)
                lacks = here & (score_bin(score, BINS, FINE, LEAST) >= edge)
                count = _append(missing + mine * room, count, run, lacks, room)
        tl.store(lacking + mine, count)
    else:
        older, same = 0, 0
        if come > 0:
            bins = tl.arange(0, BINS)
            last = tl.min(tl.where(tl.cumsum(tl.load(idle + unit * BINS + bins), 0) >= come, bins, BINS), 0)
            start = tl.load(page_start + number)
            begin, end = span(places, split, splits, TILE)
            for opening in range(begin, end, TILE):
                place = opening + tl.arange(0, TILE)
                here = place < end
                row = _place_row(page_list, start, place, here, sink, RUN, P)
                age = _used_bin(tl.load(used + row, mask=here, other=0), tokens, BINS, FINE, NEVER)
                older = _append(old + mine * room, older, place, here & (age < last), room)
                same = _append(level + mine * room, same, place, here & (age == last), room)
        tl.store(olds + mine, older)
        tl.store(levels + mine, same)
        if split == 0:
            tl.store(comes + unit, come)
        if (split == 0) & (lack > 0):
            tl.atomic_add(counted, (come * RUN).to(tl.int64), sem="relaxed")
            tl.atomic_add(counted + 1, ((lack - come) * RUN).to(tl.int64), sem="relaxed")


def choose(
    layer: LayerIndex, step: StepTables, hot: HotPool, sink: int, window: int, work: Workspace
) -> None:  # fmt: skip
    """After `probe`: which runs come to which places, for every head that is full; `hot.used` is brought up to date.

    Of the runs that a split lists only the first that may come are there; `swap_in` reads no further.
    """
    heads = layer.heads.numel()
    units = step.length.numel() * heads
    splits, per_request = work.splits(units), step.cap.shape[1]
    sizes = dict(
        HEADS=heads, RUN=work.run, P=hot.page_size, BINS=BINS, TILE=TILE, PART=PART, FINE=FINE, NEVER=NEVER,
        LEAST=LEAST, num_warps=8,
    )  # fmt: skip
    _hold[(units, splits)](
        step.length, step.cap, work.place, step.page_start, step.page_list, hot.position, hot.used, work.scores,
        work.wanted, work.idle, work.hits, per_request, layer.first, splits, sink, window,
        TOGETHER=sink % work.run == 0 and hot.page_size % work.run == 0, **sizes,
    )  # fmt: skip
    _exchange[(units, splits, 2)](
        step.length, step.cap, work.place, step.page_start, step.page_list, hot.used, work.scores, work.wanted,
        work.idle, work.hits, work.most, work.missing, work.lacking, work.old, work.olds, work.level,
        work.levels, work.comes, work.counted, per_request, layer.first, splits, sink, window, work.room,
        **sizes,
    )  # fmt: skip
