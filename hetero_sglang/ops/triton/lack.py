"""What a prompt's new tokens look at most and their heads do not hold: twin of ops/reference/lack.py.

Two launches: what is held is no candidate, nor counts as one; then splits list the best of the others, in order."""

import triton
import triton.language as tl

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.ops.base import LayerIndex, StepTables
from hetero_sglang.ops.reference.choose import BINS, FINE, LEAST
from hetero_sglang.ops.reference.lack import WORTH
from hetero_sglang.ops.triton.choose import append_to, place_row
from hetero_sglang.ops.triton.probe import score_bin, span
from hetero_sglang.ops.triton.workspace import ALIGNED, MOST_SPLITS, TILE, WARPS, Workspace

_MARKERS = 2048  # programs that mark what is held, some for each unit


@triton.jit
def _unit(
    length, cap, place_of, which, scores, caps_per_request, first, sink, window, n_heads, RUN: tl.constexpr
):  # fmt: skip
    """Of the program's unit: its number among caps, its request's tokens, its places (0: it looks for nothing), and
    where its scores are."""
    unit = tl.program_id(0)
    request = unit // n_heads
    number = request * caps_per_request + first + tl.load(which + unit % n_heads)
    rows, tokens, begins = tl.load(cap + number), tl.load(length + request), tl.load(place_of + request)
    places = tl.maximum((rows - sink - window - RUN + 1) // RUN, 0)
    places = tl.where((tokens <= rows) | (begins < 0), 0, places)
    return number, tokens, places, scores + begins.to(tl.int64) * n_heads + unit % n_heads * tokens


@triton.jit(do_not_specialize=["n_heads", "caps_per_request", "first", "splits", "sink", "window"])
def _held(
    length, cap, place_of, which, page_start, page_list, position, scores, wanted, caps_per_request, first, splits,
    sink, window, n_heads, RUN: tl.constexpr, P: tl.constexpr, BINS: tl.constexpr, TILE: tl.constexpr,
    FINE: tl.constexpr, LEAST: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    number, _, places, scores = _unit(
        length, cap, place_of, which, scores, caps_per_request, first, sink, window, n_heads, RUN
    )
    begin, end = span(places, tl.program_id(1), splits, ALIGNED)
    if begin >= end:
        return
    start = tl.load(page_start + number)
    counted = tl.zeros([BINS], tl.int32)
    for opening in range(begin, end, TILE):
        place = opening + tl.arange(0, TILE)
        here = place < end
        row = place_row(page_list, start, place, here, sink, RUN, P)
        mine = scores + tl.load(position + row, mask=here, other=0) // RUN
        score = tl.load(mine, mask=here, other=-1.0)
        tl.store(mine, -1.0, mask=here)
        counted += tl.histogram(score_bin(score, BINS, FINE, LEAST), BINS, mask=here)
    counts = wanted + tl.program_id(0) * BINS + tl.arange(0, BINS)
    tl.atomic_add(counts, -counted, mask=counted > 0, sem="relaxed")


@triton.jit(do_not_specialize=["n_heads", "caps_per_request", "first", "splits", "sink", "window", "room", "limit"])
def _lack(
    length, cap, place_of, which, scores, wanted, most, missing, lacking, even, evens, comes, counted,
    caps_per_request, first, splits, sink, window, room, limit, n_heads, RUN: tl.constexpr, BINS: tl.constexpr,
    TILE: tl.constexpr, FINE: tl.constexpr, LEAST: tl.constexpr, WORTH: tl.constexpr,
):  # fmt: skip
    """A split lists its first `room` runs of the bins above the last one's, and of its own."""
    unit, split = tl.program_id(0), tl.program_id(1)
    _, tokens, places, scores = _unit(
        length, cap, place_of, which, scores, caps_per_request, first, sink, window, n_heads, RUN
    )
    mine = unit * splits + split
    bins, come, edge, count, same = tl.arange(0, BINS), 0, 0, 0, 0
    if places > 0:
        others = tl.where(bins >= WORTH, tl.load(wanted + unit * BINS + bins), 0)
        above = tl.sum(others, 0) - tl.cumsum(others, 0) + others  # [BINS] of this bin and higher
        come = tl.minimum(tl.minimum(tl.load(most) // RUN, limit), tl.sum(others, 0))
        edge = tl.maximum(tl.max(tl.where(above >= come, bins, 0), 0), WORTH)
    if come > 0:
        low, high = sink // RUN, (tokens - window) // RUN
        begin, end = span(high, split, splits, TILE)
        for opening in range(begin, end, TILE):
            run = opening + tl.arange(0, TILE)
            score = tl.load(scores + run, mask=(run < end) & (run >= low), other=-1.0)
            bin = score_bin(score, BINS, FINE, LEAST)
            if tl.max(bin, 0) >= edge:
                count, same = append_to(
                    missing + mine * room, even + mine * room, count, same, run, bin > edge, bin == edge, room
                )
    tl.store(lacking + mine, count)
    tl.store(evens + mine, same)
    if split == 0:
        tl.store(comes + unit, come)
        if come > 0:
            tl.atomic_add(counted, (come * RUN).to(tl.int64), sem="relaxed")


def lack(
    layer: LayerIndex, step: StepTables, hot: HotPool, sink: int, window: int, work: Workspace
) -> None:  # fmt: skip
    """After `ask`: which runs come to be read once. Of those that a split lists only the first that may come are there;
    `swap_in` reads no further."""
    heads = layer.heads.numel()
    units = step.length.numel() * heads
    splits, pieces = work.splits(units), max(1, min(MOST_SPLITS, _MARKERS // units))
    shared = step.cap.stride(0), layer.first
    sizes = dict(n_heads=heads, RUN=layer.run, BINS=BINS, FINE=FINE, LEAST=LEAST, num_warps=WARPS)
    _held[(units, pieces)](
        step.length, step.cap, work.place, layer.which, step.page_start, step.page_list, hot.position, work.scores,
        work.wanted, *shared, pieces, sink, window, P=hot.page_size, TILE=TILE, ALIGNED=ALIGNED, **sizes,
    )  # fmt: skip
    _lack[(units, splits)](
        step.length, step.cap, work.place, layer.which, work.scores, work.wanted, work.most, work.missing, work.lacking,
        work.even, work.evens, work.comes, work.counted, *shared, splits, sink, window, work.room,
        work.limit(units, layer.run), TILE=2 * TILE, WORTH=WORTH, **sizes,
    )  # fmt: skip
