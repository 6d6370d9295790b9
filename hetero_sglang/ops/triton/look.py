"""What pivots look at, and how much of that their satellites hold: three launches a layer, in the step itself.

Twin of ops/reference/look.py. Logits lie in the workspace, [pivots, G + 1, L] of each request: the last row is the
attention that is pooled over neighbours, the most of the group's. Requests whose turn it is not cost nothing."""

import torch
import triton
import triton.language as tl

from hetero_sglang.ops.base import PARTS, SHARES, Counted, LayerBuffers, LayerPivots, StepTables, Watch
from hetero_sglang.ops.reference.attention import POOL
from hetero_sglang.ops.reference.choose import BINS, FINE, LEAST
from hetero_sglang.ops.triton.probe import score_bin, span
from hetero_sglang.ops.triton.workspace import MOST_PARTS, MOST_SPLITS, Workspace

_TOKENS = 256  # that a program looks at together, once logits are there
_BLOCK = 32  # and before
_COUNTED = dict(
    LOOKS=int(Counted.LOOKS), DRIFTS=int(Counted.DRIFTS), HELD=int(Counted.HELD), SUM=int(Counted.SUM), SHARES=SHARES,
    PARTS=PARTS,
)  # fmt: skip


@triton.jit
def _tokens(length, prompt, place, request, interval):
    """A request's tokens, 0 where it is not its turn."""
    tokens = tl.load(length + request)
    due = (tokens > 0) & ((tokens - tl.load(prompt + request)) % interval == 0) & (tl.load(place + request) >= 0)
    return tl.where(due, tokens, 0)


@triton.jit
def _logits_of(logits, place, request, pivot, tokens, n_pivots, GROUP: tl.constexpr):
    """Where a pivot's [G + 1, L] begin."""
    begins = tl.load(place + request).to(tl.int64) * n_pivots
    return logits + (begins + pivot * tokens) * (GROUP + 1)


@triton.jit
def _shares(tops, totals, item, member, parts, GROUP: tl.constexpr, MOST: tl.constexpr):
    """A query's maximum and one over its sum of exponents, over all parts."""
    part = tl.arange(0, MOST)
    where = (item * MOST + part) * GROUP + member
    top = tl.load(tops + where, mask=part < parts, other=float("-inf"))
    highest = tl.max(top, 0)
    total = tl.sum(tl.load(totals + where, mask=part < parts, other=0.0) * tl.exp2(top - highest), 0)
    return highest, 1.0 / total


@triton.jit(do_not_specialize=["n_pivots", "q_stride", "interval", "parts", "scale", "resident"])
def _score(
    q, slots, starts, length, prompt, place, heads, places, resident_k, logits, tops, totals, q_stride, interval, parts,
    scale, resident,
    n_pivots, GROUP: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
    MOST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits of a part of a request's tokens for one pivot, base 2; their maximum and sum of exponents."""
    item, part = tl.program_id(0), tl.program_id(1)
    request, pivot = item // n_pivots, item % n_pivots
    tokens = _tokens(length, prompt, place, request, interval)
    if tokens == 0:
        return
    member, at, within = tl.arange(0, 16), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK)
    real = (member < GROUP)[:, None]
    query = q + request.to(tl.int64) * q_stride + tl.load(heads + pivot) * GROUP * D
    asked = tl.load(query + member[:, None] * D + at[None, :], mask=real & (at < D)[None, :], other=0.0)
    mine = tl.load(places + pivot)
    listed = slots + tl.load(starts + request).to(tl.int64)
    out = _logits_of(logits, place, request, pivot, tokens, n_pivots, GROUP) + member[:, None].to(tl.int64) * tokens
    begin, end = span(tokens, part, parts, BLOCK)
    top = tl.full([16], float("-inf"), tl.float32)
    total = tl.zeros([16], tl.float32)
    for opening in range(begin, end, BLOCK):
        token = opening + within
        seen = token < end
        row = tl.load(listed + token, mask=seen, other=0).to(tl.int64) * resident + mine
        key = tl.load(resident_k + row[:, None] * D + at[None, :], mask=seen[:, None] & (at < D)[None, :], other=0.0)
        key = key.to(asked.dtype)
        found = tl.dot(asked, tl.trans(key), input_precision=PRECISION) * scale  # [16, BLOCK]
        found = tl.where(seen[None, :], found, float("-inf"))
        highest = tl.maximum(top, tl.max(found, 1))
        total = total * tl.exp2(top - highest) + tl.sum(tl.exp2(found - highest[:, None]), 1)
        top = highest
        tl.store(out + token[None, :], found, mask=real & seen[None, :])
    where = (item * MOST + part) * GROUP + member
    tl.store(tops + where, top, mask=member < GROUP)
    tl.store(totals + where, total, mask=member < GROUP)


@triton.jit
def _pool(
    item, part, length, prompt, place, logits, tops, totals, sums, interval, parts,
    n_pivots, GROUP: tl.constexpr, TOKENS: tl.constexpr, POOLED: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Attention averaged over neighbours, the most of the group's; and the sum of what is not averaged."""
    request, pivot = item // n_pivots, item % n_pivots
    tokens = _tokens(length, prompt, place, request, interval)
    mine = _logits_of(logits, place, request, pivot, tokens, n_pivots, GROUP)
    begin, end = span(tokens, part, parts, TOKENS)
    seen_all = 0.0
    for opening in range(begin, end, TOKENS):
        token = opening + tl.arange(0, TOKENS)
        here = token < end
        best, seen = tl.zeros([TOKENS], tl.float32), tl.zeros([TOKENS], tl.float32)
        around = tl.minimum(token + POOLED // 2, tokens - 1) - tl.maximum(token - POOLED // 2, 0) + 1
        for member in tl.static_range(GROUP):
            highest, share = _shares(tops, totals, item, member, parts, GROUP, MOST)
            pooled = tl.zeros([TOKENS], tl.float32)
            for step in tl.static_range(POOLED):
                near = token + step - POOLED // 2
                inside = here & (near >= 0) & (near < tokens)
                weight = tl.exp2(tl.load(mine + member * tokens + near, mask=inside, other=float("-inf")) - highest)
                pooled += weight * share
                if step == POOLED // 2:
                    seen = tl.maximum(seen, weight * share)
            best = tl.maximum(best, pooled / around.to(tl.float32))
        tl.store(mine + GROUP * tokens.to(tl.int64) + token, best, mask=here)
        seen_all += tl.sum(tl.where(here, seen, 0.0), 0)
    tl.store(sums + item * MOST + part, seen_all)


@triton.jit
def _leader(leader, slot, cap, number, all_heads, unit, tokens, least, per_request, n_heads):
    """Which pivot a unit follows, -1 where it is not to be refilled; and the rows it holds."""
    rows = tl.load(cap + (unit // n_heads) * per_request + number)
    leads = tl.load(leader + slot.to(tl.int64) * all_heads + number)
    return tl.where((rows < tokens) & (rows >= least), leads, -1), rows


@triton.jit
def _held(
    unit, split, length, prompt, request_slot, cap, page_start, page_list, position, place, leader, logits, tops,
    totals, shares, interval, parts, splits, per_request, all_heads, first, least,
    n_heads, n_pivots, GROUP: tl.constexpr, P: tl.constexpr, TOKENS: tl.constexpr,
    MOST: tl.constexpr, MOST_SPLITS: tl.constexpr,
):  # fmt: skip
    """How much of its pivot's attention lies on a share of a satellite's rows."""
    request, number = unit // n_heads, first + unit % n_heads
    tokens = _tokens(length, prompt, place, request, interval)
    slot = tl.load(request_slot + request)
    pivot, rows = _leader(leader, slot, cap, number, all_heads, unit, tokens, least, per_request, n_heads)
    held = 0.0
    if pivot >= 0:
        mine = _logits_of(logits, place, request, pivot, tokens, n_pivots, GROUP)
        start = tl.load(page_start + request * per_request + number)
        begin, end = span(rows, split, splits, TOKENS)
        for opening in range(begin, end, TOKENS):
            row = opening + tl.arange(0, TOKENS)
            here = row < end
            page = tl.load(page_list + start + row // P, mask=here, other=0).to(tl.int64)
            token = tl.load(position + page * P + row % P, mask=here, other=0)
            seen = tl.zeros([TOKENS], tl.float32)
            for member in tl.static_range(GROUP):
                highest, share = _shares(tops, totals, request * n_pivots + pivot, member, parts, GROUP, MOST)
                weight = tl.exp2(tl.load(mine + member * tokens + token, mask=here, other=float("-inf")) - highest)
                seen = tl.maximum(seen, weight * share)
            held += tl.sum(tl.where(here, seen, 0.0), 0)
    tl.store(shares + unit * MOST_SPLITS + split, held)


@triton.jit(do_not_specialize=["n_heads", "n_pivots", "items", "units", "interval", "parts", "splits", "per_request",
                               "all_heads", "first", "least"])  # fmt: skip
def _compare(
    length, prompt, request_slot, cap, page_start, page_list, position, place, leader, logits, tops, totals, sums,
    shares, wanted, idle, items, units, interval, parts, splits, per_request, all_heads, first, least,
    n_heads, n_pivots, GROUP: tl.constexpr, P: tl.constexpr, TOKENS: tl.constexpr,
    POOLED: tl.constexpr, MOST: tl.constexpr, MOST_SPLITS: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Half of the programs pool what pivots see, the others add up what satellites hold of it."""
    which, part = tl.program_id(0), tl.program_id(1)
    if tl.program_id(2) == 0:
        if (which < items) & (part < parts):
            _pool(which, part, length, prompt, place, logits, tops, totals, sums, interval, parts, n_pivots, GROUP,
                  TOKENS, POOLED, MOST)  # fmt: skip
    else:
        if (which < units) & (part < splits):
            if part == 0:
                tl.store(wanted + which * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int32))
                tl.store(idle + which * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int32))
            _held(which, part, length, prompt, request_slot, cap, page_start, page_list, position, place, leader,
                  logits, tops, totals, shares, interval, parts, splits, per_request, all_heads, first, least, n_heads,
                  n_pivots, GROUP, P, TOKENS, MOST, MOST_SPLITS)  # fmt: skip


@triton.jit
def _chance(request, number, length):
    """A number in [0, 1) that looks random."""
    mixed = (request.to(tl.int64) * 7919 + number * 104729 + length.to(tl.int64) * 1299709) & 0x7FFFFFFF
    mixed = ((mixed ^ (mixed >> 13)) * 1103515245 + 12345) & 0x7FFFFFFF
    return ((mixed >> 8) & 0xFFFF).to(tl.float32) / 65536


@triton.jit(do_not_specialize=["n_heads", "n_pivots", "interval", "parts", "splits", "per_request", "all_heads",
                               "first", "least", "sink", "window", "threshold", "decay", "layer_group"])  # fmt: skip
def _refill(
    length, prompt, request_slot, cap, place, leader, filled, rate, logits, sums, shares, scores, wanted, flag, fading,
    counted, interval, parts, splits, per_request, all_heads, first, least, sink, window, threshold, decay,
    layer_group, n_heads, n_pivots, GROUP: tl.constexpr, TOKENS: tl.constexpr, MOST: tl.constexpr,
    MOST_SPLITS: tl.constexpr, LOOKS: tl.constexpr, DRIFTS: tl.constexpr, HELD: tl.constexpr, SHARES: tl.constexpr,
    SUM: tl.constexpr, PARTS: tl.constexpr, BINS: tl.constexpr, FINE: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """A satellite that holds too little gets its pivot's scores, and their bins' counts."""
    unit, part = tl.program_id(0), tl.program_id(1)
    request, number = unit // n_heads, first + unit % n_heads
    tokens = _tokens(length, prompt, place, request, interval)
    slot = tl.load(request_slot + request)
    pivot, _ = _leader(leader, slot, cap, number, all_heads, unit, tokens, least, per_request, n_heads)
    drifted, held, seen = 0, 0.0, 1.0
    if pivot >= 0:
        split, every = tl.arange(0, MOST_SPLITS), tl.arange(0, MOST)
        held = tl.sum(tl.load(shares + unit * MOST_SPLITS + split, mask=split < splits, other=0.0), 0)
        seen = tl.sum(tl.load(sums + (request * n_pivots + pivot) * MOST + every, mask=every < parts, other=0.0), 0)
        forced = tl.load(rate)
        drifted = tl.where(forced < 0, held / seen < threshold, _chance(slot, number, tokens) < forced).to(tl.int32)
    if part == 0:
        tl.store(flag + unit, drifted)
        if pivot >= 0:
            share = tl.minimum(tl.maximum(held / seen, 0.0), 1.0)
            tl.atomic_add(counted + LOOKS + layer_group, 1, sem="relaxed")
            tl.atomic_add(counted + HELD + tl.minimum((share * SHARES).to(tl.int32), SHARES - 1), 1, sem="relaxed")
            tl.atomic_add(counted + SUM, (share * PARTS).to(tl.int64), sem="relaxed")
        if drifted != 0:
            where = filled + slot.to(tl.int64) * all_heads + number
            looks = (tokens - tl.load(where)).to(tl.float32) / interval
            tl.store(fading + unit, tl.where(decay > 0, tl.exp2(tl.log2(tl.maximum(decay, 1e-30)) * looks), 0.0))
            tl.store(where, tokens)
            tl.atomic_add(counted + DRIFTS + layer_group, 1, sem="relaxed")
    if drifted != 0:
        theirs = _logits_of(logits, place, request, pivot, tokens, n_pivots, GROUP) + GROUP * tokens.to(tl.int64)
        mine = scores + tl.load(place + request).to(tl.int64) * n_heads + unit % n_heads * tokens
        begin, end = span(tokens, part, parts, TOKENS)
        found = tl.zeros([BINS], tl.int32)
        for opening in range(begin, end, TOKENS):
            token = opening + tl.arange(0, TOKENS)
            here = token < end
            score = tl.load(theirs + token, mask=here, other=0.0)
            tl.store(mine + token, score, mask=here)
            inside = here & (token >= sink) & (token < tokens - window)
            found += tl.histogram(score_bin(score, BINS, FINE, LEAST), BINS, mask=inside)
        tl.atomic_add(wanted + unit * BINS + tl.arange(0, BINS), found, mask=found > 0, sem="relaxed")


def look(
    q: torch.Tensor, layer: LayerBuffers, pivots: LayerPivots, slots: torch.Tensor, starts: torch.Tensor,
    step: StepTables, scale: float, watch: Watch, sink: int, window: int, work: Workspace,
) -> None:  # fmt: skip
    """A step's queries q [B, Hq, D]: satellites that hold too little of what their pivots see are to be refilled."""
    batch, _, dim = q.shape
    count, heads, group = pivots.head.numel(), layer.heads.numel(), work.group
    items, units = batch * count, batch * heads
    parts, splits = work.parts(items), work.splits(units)
    per_request, all_heads = step.cap.shape[1], watch.leader.shape[1]
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    sizes = dict(n_pivots=count, GROUP=group, MOST=MOST_PARTS)
    _score[(items, parts)](
        q, slots, starts, step.length, watch.prompt, work.place, pivots.head, pivots.place, layer.resident_k,
        work.logits, work.tops, work.totals, q.stride(0), watch.interval, parts, scale * 1.4426950408889634,
        layer.resident_k.shape[1], D=dim, BLOCK=_BLOCK, BLOCK_D=triton.next_power_of_2(dim), PRECISION=precision,
        num_warps=4, num_stages=3, **sizes,
    )  # fmt: skip
    _compare[(max(items, units), max(parts, splits), 2)](
        step.length, watch.prompt, watch.request, step.cap, step.page_start, step.page_list, layer.position, work.place,
        watch.leader, work.logits, work.tops, work.totals, work.sums, work.shares, work.wanted, work.idle, items, units,
        watch.interval, parts, splits, per_request, all_heads, layer.first, watch.least,
        n_heads=heads, P=layer.hot_k.shape[1], TOKENS=_TOKENS, POOLED=POOL, MOST_SPLITS=MOST_SPLITS, BINS=BINS,
        num_warps=4, **sizes,
    )  # fmt: skip
    _refill[(units, parts)](
        step.length, watch.prompt, watch.request, step.cap, work.place, watch.leader, watch.filled, watch.rate,
        work.logits, work.sums, work.shares, work.scores, work.wanted, work.flag, work.fading, work.counted,
        watch.interval, parts, splits, per_request, all_heads, layer.first, watch.least, sink, window, watch.threshold,
        watch.decay, watch.group, n_heads=heads, TOKENS=_TOKENS, MOST_SPLITS=MOST_SPLITS, BINS=BINS, FINE=FINE,
        LEAST=LEAST, num_warps=4, **_COUNTED, **sizes,
    )  # fmt: skip
