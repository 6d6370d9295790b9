"""What a prompt's new tokens look at most and their heads do not hold: twin of ops/reference/lack.py."""

import triton
import triton.language as tl

from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.ops.base import StepTables
from hetero_sglang.ops.reference.choose import BINS, FINE, LEAST
from hetero_sglang.ops.reference.lack import WORTH
from hetero_sglang.ops.triton.choose import append_to
from hetero_sglang.ops.triton.probe import score_bin, span
from hetero_sglang.ops.triton.workspace import TILE, WARPS, Workspace


@triton.jit(do_not_specialize=["n_heads", "caps_per_request", "first", "splits", "sink", "window", "room", "limit"])
def _lack(
    length, cap, place_of, which, scores, wanted, most, missing, lacking, even, evens, comes, counted,
    caps_per_request, first, splits, sink, window, room, limit, n_heads, RUN: tl.constexpr, BINS: tl.constexpr,
    TILE: tl.constexpr, FINE: tl.constexpr, LEAST: tl.constexpr, WORTH: tl.constexpr,
):  # fmt: skip
    """A split lists its first `room` runs of the bins above the last one's, and of its own."""
    unit, split = tl.program_id(0), tl.program_id(1)
    request = unit // n_heads
    number = request * caps_per_request + first + tl.load(which + unit % n_heads)
    tokens, begins = tl.load(length + request), tl.load(place_of + request)
    looks = (tl.load(cap + number) < tokens) & (begins >= 0)
    scores += begins.to(tl.int64) * n_heads + unit % n_heads * tokens
    mine = unit * splits + split
    bins, come, edge, count, same = tl.arange(0, BINS), 0, 0, 0, 0
    if looks:
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


def lack(layer: LayerIndex, step: StepTables, sink: int, window: int, work: Workspace) -> None:
    """After `ask` of what is not held: which runs come to be read once. Of those that a split lists only the first that
    may come are there; `swap_in` reads no further."""
    heads = layer.heads.numel()
    units = step.length.numel() * heads
    splits = work.splits(units)
    _lack[(units, splits)](
        step.length, step.cap, work.place, layer.which, work.scores, work.wanted, work.most, work.missing, work.lacking,
        work.even, work.evens, work.comes, work.counted, step.cap.stride(0), layer.first, splits, sink, window,
        work.room, work.limit(units, layer.run), n_heads=heads, RUN=layer.run, BINS=BINS, FINE=FINE, LEAST=LEAST,
        TILE=2 * TILE, WORTH=WORTH, num_warps=WARPS,
    )  # fmt: skip
