"""Both rules on the device: twin of ops/reference/choose.py, over scores that `probe` or `look` left in the workspace.

Two launches: places (which are wanted, the others by their last use; or what each is worth); then, side by side, runs
(wanted and not held) and places again (which are given away). What is listed is listed by splits in order, so the
outcome depends on no timing."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.ops.base import LayerBuffers, StepTables
from hetero_sglang.ops.reference.choose import BINS, FINE, LEAST, NEVER, PART
from hetero_sglang.ops.triton.early import early, overlaps
from hetero_sglang.ops.triton.probe import is_turn, score_bin, span
from hetero_sglang.ops.triton.workspace import ALIGNED, TILE, WARPS, Workspace


@triton.jit
def _edge(wanted, unit, places, low, high, PART: tl.constexpr, BINS: tl.constexpr):
    """The bin of the last wanted run, not the lowest; how many are wanted, and how many runs the bins above it have,
    and itself."""
    bins = tl.arange(0, BINS)
    count = tl.load(wanted + unit * BINS + bins)
    above = tl.sum(count, 0) - tl.cumsum(count, 0) + count  # [BINS] runs of this bin and higher
    want = tl.minimum(tl.maximum(places // PART, 1), high - low)
    edge = tl.maximum(tl.max(tl.where(above >= want, bins, 0), 0), 1)
    return edge, want, tl.sum(tl.where(bins > edge, count, 0), 0), tl.sum(tl.where(bins == edge, count, 0), 0)


@triton.jit
def _used_bin(used, length, BINS: tl.constexpr, FINE: tl.constexpr, NEVER: tl.constexpr):
    """Bin of a place's last use: the lower, the longer it is unwanted."""
    half: tl.constexpr = BINS // 2
    never = tl.minimum(tl.maximum((used + NEVER) >> 1, 0), half - 1)
    age = (tl.maximum(length - used, 1).to(tl.float32).to(tl.int32, bitcast=True) >> FINE) - 508
    return tl.where(used < 0, never, BINS - 1 - tl.minimum(age, half - 1))


@triton.jit
def place_row(page_list, start, place, here, sink, RUN: tl.constexpr, P: tl.constexpr):
    """Flat hot row of the first token of a selected run's place."""
    row = sink + place * RUN
    return tl.load(page_list + start + row // P, mask=here, other=0).to(tl.int64) * P + row % P


@triton.jit
def append_to(listed, level, count, same, what, mask, alike, room):
    """List `what` where `mask`, after `count` others, and where `alike` in `level`, after `same`; as far as there is
    room. How many there are now."""
    both = tl.cumsum(mask.to(tl.int32) + (alike.to(tl.int32) << 16), 0)  # one pass for two: a tile has fewer
    at, at_level = count + (both & 0xFFFF) - 1, same + (both >> 16) - 1
    tl.store(listed + at, what, mask=mask & (at < room))
    tl.store(level + at_level, what, mask=alike & (at_level < room))
    return count + tl.sum(mask.to(tl.int32), 0), same + tl.sum(alike.to(tl.int32), 0)


@triton.jit(do_not_specialize=["n_heads", "caps_per_request", "first", "turn", "splits", "sink", "window"])
def _hold(
    length, cap, clock, place_of, which, every, page_start, page_list, position, used, scores, wanted, idle, hits,
    caps_per_request, first, turn, splits, sink, window,
    n_heads, RUN: tl.constexpr, P: tl.constexpr, BINS: tl.constexpr, TILE: tl.constexpr,
    PART: tl.constexpr, FINE: tl.constexpr, NEVER: tl.constexpr, LEAST: tl.constexpr, ALIGNED: tl.constexpr,
    PASSING: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Places whose run is wanted are used now, unless PASSING, and their runs no longer candidates; the others count by
    last use."""
    unit, split = tl.program_id(0), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
    request = unit // n_heads
    number = request * caps_per_request + first + tl.load(which + unit % n_heads)
    rows, tokens = tl.load(cap + number), tl.load(length + request)
    places = (rows - sink - window - RUN + 1) // RUN
    begins = tl.load(place_of + request)
    out = (tokens <= rows) | (places <= 0) | (begins < 0)
    out = out | (is_turn(every, unit % n_heads, clock, turn) == 0)
    scores += begins.to(tl.int64) * n_heads + unit % n_heads * tokens
    begin, end = span(places, split, splits, ALIGNED)
    if out | (begin >= end):
        if PDL:
            gdc_wait()  # whoever ends has seen the kernel before it end
        return
    start = tl.load(page_start + number)
    counted = tl.zeros([BINS], tl.int32)
    kept, sure = 0, 0
    for opening in range(begin, end, TILE):  # mostly once
        place = opening + tl.arange(0, TILE)
        here = place < end
        row = place_row(page_list, start, place, here, sink, RUN, P)
        run = tl.load(position + row, mask=here, other=0) // RUN
        before = tl.load(used + row, mask=here, other=0)
        mine = scores + run
        if PDL and opening == begin:
            gdc_wait()
        score = tl.load(mine, mask=here, other=-1.0)
        # Not before: these loads are on their way meanwhile.
        edge, _, _, _ = _edge(wanted, unit, places, sink // RUN, (tokens - window) // RUN, PART, BINS)
        bin = score_bin(score, BINS, FINE, LEAST)
        hit = here & (bin >= edge)
        tl.store(mine, -1.0, mask=hit)
        free = before < tokens  # else it was wanted at this length before, or is pinned: it stays
        for within in tl.static_range(0 if PASSING else RUN):
            tl.store(used + row + within, tokens + place * 0, mask=hit & free)
        kept += tl.sum(hit.to(tl.int32), 0)
        sure += tl.sum((here & (bin > edge)).to(tl.int32), 0)
        counted += tl.histogram(_used_bin(before, tokens, BINS, FINE, NEVER), BINS, mask=here & (hit == 0) & free)
    bins = tl.arange(0, BINS)
    tl.atomic_add(idle + unit * BINS + bins, counted, mask=counted > 0, sem="relaxed")
    tl.atomic_add(hits + 2 * unit, kept, sem="relaxed")
    tl.atomic_add(hits + 2 * unit + 1, sure, sem="relaxed")


@triton.jit(do_not_specialize=["n_heads", "caps_per_request", "first", "splits", "sink", "window"])
def _keep(
    length, cap, place_of, which, page_start, page_list, position, worth, scores, wanted, idle, flag, fading,
    caps_per_request, first, splits, sink, window,
    n_heads, P: tl.constexpr, BINS: tl.constexpr, TILE: tl.constexpr, FINE: tl.constexpr,
    LEAST: tl.constexpr, ALIGNED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of a head that is to be refilled: what its rows are worth now, which are no candidates any more."""
    unit, split = tl.program_id(0), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
    if tl.load(flag + unit) == 0:
        return
    request = unit // n_heads
    number = request * caps_per_request + first + tl.load(which + unit % n_heads)
    places, tokens = tl.load(cap + number) - sink - window, tl.load(length + request)
    scores += tl.load(place_of + request).to(tl.int64) * n_heads + unit % n_heads * tokens
    begin, end = span(places, split, splits, ALIGNED)
    start, left = tl.load(page_start + number), tl.load(fading + unit)
    kept = tl.zeros([BINS], tl.int32)
    held = tl.zeros([BINS], tl.int32)
    for opening in range(begin, end, TILE):
        place = opening + tl.arange(0, TILE)
        here = place < end
        row = place_row(page_list, start, place, here, sink, 1, P)
        mine = scores + tl.load(position + row, mask=here, other=0)
        score = tl.load(mine, mask=here, other=0.0)
        now = tl.maximum(tl.load(worth + row, mask=here, other=0.0) * left, score)
        tl.store(worth + row, now, mask=here)
        tl.store(mine, -1.0, mask=here)
        kept += tl.histogram(score_bin(now, BINS, FINE, LEAST), BINS, mask=here)
        held += tl.histogram(score_bin(score, BINS, FINE, LEAST), BINS, mask=here)
    bins = tl.arange(0, BINS)
    tl.atomic_add(idle + unit * BINS + bins, kept, mask=kept > 0, sem="relaxed")
    tl.atomic_add(wanted + unit * BINS + bins, -held, mask=held > 0, sem="relaxed")


@triton.jit
def _merged_edge(wanted, idle, unit, places, BINS: tl.constexpr):
    """The bin of the last that is kept, of candidates and places together; how many candidates come of the bins above
    it, and how many of its own."""
    bins = tl.arange(0, BINS)
    others, ours = tl.load(wanted + unit * BINS + bins), tl.load(idle + unit * BINS + bins)
    both = others + ours
    above = tl.sum(both, 0) - tl.cumsum(both, 0) + both  # [BINS] of this bin and higher
    edge = tl.max(tl.where(above >= places, bins, 0), 0)
    room = places - tl.sum(tl.where(bins > edge, both, 0), 0)
    own = tl.sum(tl.where(bins == edge, ours, 0), 0)
    return edge, tl.sum(tl.where(bins > edge, others, 0), 0), tl.maximum(room - own, 0)


@triton.jit(
    do_not_specialize=["n_heads", "caps_per_request", "first", "turn", "splits", "sink", "window", "room", "limit"]
)
def _exchange(
    length, cap, clock, place_of, which, every, page_start, page_list, used, scores, wanted, idle, hits, most, missing,
    lacking, old, olds, level, levels, comes, lates, counted, flag, even, evens, caps_per_request, first, turn, splits,
    sink, window, room, limit, n_heads, RUN: tl.constexpr, P: tl.constexpr, BINS: tl.constexpr,
    TILE: tl.constexpr, PART: tl.constexpr, FINE: tl.constexpr, NEVER: tl.constexpr, LEAST: tl.constexpr,
    MERGED: tl.constexpr, ALIGNED: tl.constexpr, PASSING: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Half of the programs, or all that are PASSING: runs that are wanted and not held. The others: places that are
    given away, as many as runs come, longest unwanted or worth least first. A split lists its first `room`, and looks
    no further than for all that come."""
    unit, split, giving = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    request = unit // n_heads
    if PDL:
        gdc_launch_dependents()
    number = request * caps_per_request + first + tl.load(which + unit % n_heads)
    rows, tokens = tl.load(cap + number), tl.load(length + request)
    places = (rows - sink - window - RUN + 1) // RUN
    low, high = sink // RUN, (tokens - window) // RUN
    come, lack, edge = 0, 0, 0
    begins, start = tl.load(place_of + request), tl.load(page_start + number)
    allowed, bins = tl.minimum(tl.load(most) // RUN, limit), tl.arange(0, BINS)
    scores += begins.to(tl.int64) * n_heads + unit % n_heads * tokens
    run, place = tl.arange(0, 2 * TILE), tl.arange(0, TILE)
    if giving == 0:
        begin, end = span(high, split, splits, 2 * TILE)
    else:
        begin, end = span(places, split, splits, ALIGNED)
    run, place = run + begin, place + begin
    here = (place < end) & (giving != 0)
    if not MERGED:
        find = (tokens > rows) & (places > 0) & (begins >= 0) & is_turn(every, unit % n_heads, clock, turn)
        here = here & find
    row = place_row(page_list, start, place, here, sink, RUN, P)
    if PDL:
        gdc_wait()
    if MERGED:
        find = tl.load(flag + unit) != 0
        here = here & find
    # The first turn's reads are on their way while it is found out how many come.
    score = tl.load(scores + run, mask=(run < end) & (run >= low) & find & (giving == 0), other=-1.0)
    before = tl.load(used + row, mask=here, other=0)
    others = tl.load(idle + unit * BINS + bins)  # places, by last use
    if find:
        if MERGED:
            edge, sure, more = _merged_edge(wanted, idle, unit, places, BINS)
            lack = sure + more
            come = tl.minimum(lack, allowed)
        else:
            kept, sure = tl.load(hits + 2 * unit), tl.load(hits + 2 * unit + 1)
            edge, want, above, alike = _edge(wanted, unit, places, low, high, PART, BINS)
            lack = above - sure  # what is held lies where runs may come in
            lack += tl.minimum(tl.maximum(want - kept - lack, 0), alike - (kept - sure))
            come = tl.minimum(lack, allowed)
            if not PASSING:
                come = tl.minimum(come, tl.sum(others, 0))
    mine = unit * splits + split
    if giving == 0:
        count, same_bin = 0, 0
        if come > 0:
            for _opening in range(begin, end, 2 * TILE):
                if count < come:
                    bin = score_bin(score, BINS, FINE, LEAST)
                    if tl.max(bin, 0) >= edge:  # seldom, where few come
                        count, same_bin = append_to(
                            missing + mine * room, even + mine * room, count, same_bin, run, bin > edge, bin == edge,
                            room,
                        )  # fmt: skip
                    run += 2 * TILE
                    score = tl.load(scores + run, mask=(run < end) & (run >= low), other=-1.0)
        tl.store(lacking + mine, count)
        tl.store(evens + mine, same_bin)
    else:
        older, same = 0, 0
        if come > 0:
            last = edge
            if not MERGED:
                last = tl.min(tl.where(tl.cumsum(others, 0) >= come, bins, BINS), 0)
            for _opening in range(begin, end, TILE):
                if older < come:
                    if MERGED:
                        age = score_bin(before, BINS, FINE, LEAST)
                    else:
                        age = _used_bin(before, tokens, BINS, FINE, NEVER)
                        age = tl.where(before >= tokens, BINS, age)  # what stays
                    older, same = append_to(
                        old + mine * room, level + mine * room, older, same, place, here & (age < last),
                        here & (age == last), room,
                    )  # fmt: skip
                    place += TILE
                    here = place < end
                    row = place_row(page_list, start, place, here, sink, RUN, P)
                    before = tl.load(used + row, mask=here, other=0)
        tl.store(olds + mine, older)
        tl.store(levels + mine, same)
    if (split == 0) & ((giving != 0) | PASSING):
        tl.store(comes + unit, come)
        tl.store(lates + unit, lack - come)
        if lack > 0:
            tl.atomic_add(counted, (come * RUN).to(tl.int64), sem="relaxed")
            tl.atomic_add(counted + 1, ((lack - come) * RUN).to(tl.int64), sem="relaxed")


def choose(
    layer: LayerBuffers | LayerIndex, step: StepTables, hot: HotPool, sink: int, window: int, work: Workspace,
    merged: bool = False, passing: bool = False,
) -> None:  # fmt: skip
    """After `probe` or `look`: which runs come to which places, for every head that is full, or that is to be refilled,
    as many as a PART of its places; `hot.used`, or `hot.score` where rows are `merged`, is brought up to date.
    `passing`, not of merged rows: what comes is to be read once, and has no places.

    Of the runs that a split lists only the first that may come are there; `swap_in` reads no further."""
    heads = layer.heads.numel()
    units = step.length.numel() * heads
    splits, per_request = work.splits(units), step.cap.shape[1]
    every, turn = (layer.every, layer.turn) if isinstance(layer, LayerIndex) else (layer.which, 0)  # no turn is asked
    sizes = dict(
        n_heads=heads, RUN=layer.run, P=hot.page_size, BINS=BINS, TILE=TILE, PART=PART, FINE=FINE, NEVER=NEVER,
        LEAST=LEAST, ALIGNED=ALIGNED, PDL=overlaps(step.length.device), num_warps=WARPS,
    )  # fmt: skip
    pdl = overlaps(step.length.device)
    if merged:
        _keep[(units, splits)](
            step.length, step.cap, work.place, layer.which, step.page_start, step.page_list, hot.position, hot.score,
            work.scores, work.wanted, work.idle, work.flag, work.fading, per_request, layer.first, splits, sink, window,
            n_heads=heads, P=hot.page_size, BINS=BINS, TILE=TILE, FINE=FINE, LEAST=LEAST, ALIGNED=ALIGNED, PDL=pdl,
            num_warps=WARPS,
        )  # fmt: skip
    else:
        _hold[(units, 2 * splits)](
            step.length, step.cap, step.clock, work.place, layer.which, every, step.page_start, step.page_list,
            hot.position, hot.used, work.scores, work.wanted, work.idle, work.hits, per_request, layer.first, turn,
            2 * splits, sink, window, PASSING=passing, **early(pdl), **sizes,
        )  # fmt: skip
    _exchange[(units, splits, 1 if passing else 2)](
        step.length, step.cap, step.clock, work.place, layer.which, every, step.page_start, step.page_list,
        hot.score if merged else hot.used, work.scores, work.wanted, work.idle, work.hits, work.most, work.missing,
        work.lacking, work.old, work.olds, work.level, work.levels, work.comes, work.lates, work.counted, work.flag,
        work.even, work.evens, per_request, layer.first, turn, splits, sink, window, work.room,
        work.limit(units, layer.run), MERGED=merged, PASSING=passing, **early(pdl), **sizes,
    )  # fmt: skip
