"""Scores of every run of a request's tokens by its heads' key indexes: twin of ops/reference/index.py's `probe`.

Two launches: one reads the index rows and leaves each query's exponents, in bfloat16 and beside what each part of the
tokens began with, and their sums; one makes scores of them and counts how many fall in which bin. A query's weights
are rounded to 8 bits with a scale per field, the codes stay packed: four at a time are multiplied and added up in
integers."""

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.ops.base import StepTables
from hetero_sglang.ops.reference.choose import BINS, FINE, LEAST
from hetero_sglang.ops.triton.early import early, overlaps
from hetero_sglang.ops.triton.index import MOST_FIELDS, flat_fields
from hetero_sglang.ops.triton.workspace import MOST_DIRECTIONS, MOST_PARTS, READ, WARPS, Workspace

_SHARED = 2  # programs that make scores of a part's exponents: they wait for memory, not for room
_NOTHING = -1e30  # a logit below all: finite, so that differences are numbers
_HIGHEST = 100.0  # of an exponent: sums are finite


@triton.jit
def span(length, split, splits, TILE: tl.constexpr):
    """This split's share [begin, end) of `length` things, in whole tiles."""
    size = tl.cdiv(tl.cdiv(length, splits), TILE) * TILE
    return tl.minimum(split * size, length), tl.minimum((split + 1) * size, length)


@triton.jit
def is_turn(every, head, clock, turn):
    """Whether a head finds rows in this step, for all requests alike."""
    return (tl.load(clock) + turn) % tl.load(every + head) == 0


@triton.jit
def score_bin(score, BINS: tl.constexpr, FINE: tl.constexpr, LEAST: tl.constexpr):
    """Twin of ops/reference/choose.py's; -1 for what is marked as held."""
    bin = tl.minimum(tl.maximum((score.to(tl.int32, bitcast=True) >> FINE) - LEAST, 0), BINS - 1)
    return tl.where(score < 0, -1, bin)


@triton.jit
def _stack(values):
    """One, two or four tensors as one, along a new last axis that a thread keeps together."""
    if len(values) == 4:
        both = tl.join(tl.join(values[0], values[2]), tl.join(values[1], values[3]))
        stacked = tl.reshape(both, values[0].shape + [4])
    elif len(values) == 2:
        stacked = tl.join(values[0], values[1])
    else:
        stacked = tl.expand_dims(values[0], -1)
    return stacked


@triton.jit
def _byte(way, N: tl.constexpr, B: tl.constexpr):
    """Where among a field's weights that of direction `way` is, so that four together meet four codes of `_codes`."""
    full: tl.constexpr = N * B // 32 * 32 // B  # directions in whole pairs of words
    bit = way * B % 32
    pair = way * B // 32 * (32 // B) + bit % 8 // B * 4 + bit // 8
    last = full + bit % 4 // B * 4 + bit // 8 + bit % 8 // 4 * 2
    return tl.where(way < full, pair, last)


@triton.jit
def _factor(weight, way, FIRST: tl.constexpr, N: tl.constexpr):
    """What one of 8 bits counts [16] in a field, of all weights [16, PAD]."""
    inside = (way >= FIRST) & (way < FIRST + N)
    return tl.max(tl.where(inside[None, :], tl.abs(weight), 0.0), 1) * (1.0 / 127.0)


@triton.jit
def _weights(
    query, decode, first,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, D: tl.constexpr, R: tl.constexpr, PAD: tl.constexpr,
    ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What each direction's codes count [16, PAD] for a unit's queries from `first` on."""
    way, member = tl.arange(0, PAD), tl.arange(0, 16)
    real = (member < QUERIES) & (first + member < GROUP)
    weight = tl.zeros([16, PAD], tl.float32)
    for start in range(0, D, ROWS):
        at = start + tl.arange(0, ROWS)
        turn = tl.load(decode + at[:, None] * R + way[None, :], mask=(at < D)[:, None] & (way < R)[None, :], other=0.0)
        mine = query + (first + member)[:, None] * D + at[None, :]
        asked = tl.load(mine, mask=real[:, None] & (at < D)[None, :], other=0.0)
        weight += tl.dot(asked.to(tl.float32), turn, input_precision=PRECISION)
    return weight


@triton.jit
def _ask(
    weight, weights, factors, first,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, R: tl.constexpr, PAD: tl.constexpr, N0: tl.constexpr,
    B0: tl.constexpr, N1: tl.constexpr, B1: tl.constexpr, N2: tl.constexpr, B2: tl.constexpr,
    MOST_FIELDS: tl.constexpr,
):  # fmt: skip
    """Write `weight` [16, PAD] of a unit's queries from `first` on as `weights` int8 and `factors` by field.

    All parts of a unit write the same."""
    way, member = tl.arange(0, PAD), tl.arange(0, 16)
    real = (member < QUERIES) & (first + member < GROUP)
    factors += (first + member) * MOST_FIELDS
    factor = _factor(weight, way, 0, N0)
    tl.store(factors, factor, mask=real)
    count = 1.0 / tl.maximum(factor, 1e-30)[:, None]
    byte = _byte(way, N0, B0)
    if N1 > 0:
        factor = _factor(weight, way, N0, N1)
        tl.store(factors + 1, factor, mask=real)
        count = tl.where((way < N0)[None, :], count, 1.0 / tl.maximum(factor, 1e-30)[:, None])
        byte = tl.where(way < N0, byte, N0 + _byte(way - N0, N1, B1))
    if N2 > 0:
        factor = _factor(weight, way, N0 + N1, N2)
        tl.store(factors + 2, factor, mask=real)
        count = tl.where((way < N0 + N1)[None, :], count, 1.0 / tl.maximum(factor, 1e-30)[:, None])
        byte = tl.where(way < N0 + N1, byte, N0 + N1 + _byte(way - N0 - N1, N2, B2))
    # Rounded into the low bits of 1.5 * 2**23.
    rounded = (weight * count + 12582912.0).to(tl.int32, bitcast=True)
    where = weights + (first + member)[:, None] * R + byte[None, :]
    tl.store(where, rounded.to(tl.int8), mask=real[:, None] & (way < R)[None, :])


@triton.jit
def _asked(weights, factors, first, GROUP: tl.constexpr, QUERIES: tl.constexpr, R: tl.constexpr, FIELDS: tl.constexpr,
           MOST_FIELDS: tl.constexpr):  # fmt: skip
    """What `_ask` wrote, four weights to a number: by queries, then directions; and by queries, then fields."""
    weight: tl.tuple = ()
    factor: tl.tuple = ()
    for i in tl.static_range(QUERIES):
        real = first + i < GROUP
        for four in tl.static_range(R // 4):
            weight = weight + (tl.load(weights + (first + i) * (R // 4) + four, mask=real, other=0),)
        for field in tl.static_range(FIELDS):
            factor = factor + (tl.load(factors + (first + i) * MOST_FIELDS + field, mask=real, other=0.0),)
    return weight, factor


@triton.jit
def _word(words, here):
    return tl.load(words, mask=here, other=0).to(tl.uint16, bitcast=True).to(tl.int32)


@triton.jit
def _field_words(words, here, FIRST: tl.constexpr, N: tl.constexpr, B: tl.constexpr):
    """A field's words from word FIRST on, two to a number; of a last one alone, what is left of each byte follows."""
    row: tl.tuple = ()
    for pair in tl.static_range(N * B // 32):
        low = _word(words + FIRST + 2 * pair, here)
        row = row + (low | (_word(words + FIRST + 2 * pair + 1, here) << 16),)
    if N * B % 32 > 0:
        last = _word(words + FIRST + N * B // 16 - 1, here)
        row = row + (last | ((last >> 4) << 16),)
    return row


@triton.jit
def _words(words, here, N0: tl.constexpr, B0: tl.constexpr, N1: tl.constexpr, B1: tl.constexpr, N2: tl.constexpr,
           B2: tl.constexpr):  # fmt: skip
    """The rows at words [T], as some int32 [T]."""
    row = _field_words(words, here, 0, N0, B0)
    if N1 > 0:
        row = row + _field_words(words, here, N0 * B0 // 16, N1, B1)
    if N2 > 0:
        row = row + _field_words(words, here, (N0 * B0 + N1 * B1) // 16, N2, B2)
    return row


@triton.jit
def _field_codes(row, FIRST: tl.constexpr, N: tl.constexpr, B: tl.constexpr):
    """Codes of a field that begins with number FIRST of the row, four to a number's bytes, as `_byte` has them."""
    mask: tl.constexpr = ((1 << B) - 1) * 0x01010101
    codes: tl.tuple = ()
    for pair in tl.static_range(N * B // 32):
        for turn in tl.static_range(8 // B):
            codes = codes + ((row[FIRST + pair] >> (turn * B)) & mask,)
    if N * B % 32 > 0:
        for turn in tl.static_range(4 // B):
            codes = codes + ((row[FIRST + N * B // 32] >> (turn * B)) & mask,)
    return codes


@triton.jit
def _codes(row, N0: tl.constexpr, B0: tl.constexpr, N1: tl.constexpr, B1: tl.constexpr, N2: tl.constexpr,
           B2: tl.constexpr):  # fmt: skip
    codes = _field_codes(row, 0, N0, B0)
    if N1 > 0:
        codes = codes + _field_codes(row, (N0 * B0 + 16) // 32, N1, B1)
    if N2 > 0:
        codes = codes + _field_codes(row, (N0 * B0 + 16) // 32 + (N1 * B1 + 16) // 32, N2, B2)
    return codes


@triton.jit
def _dot4(codes, weights, total, ASM: tl.constexpr):
    """total + the sum of four products, of unsigned bytes with signed ones."""
    if ASM:
        total = tl.inline_asm_elementwise(
            "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [codes, weights, total], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        for byte in tl.static_range(4):
            total += ((codes >> (8 * byte)) & 255) * ((weights << (24 - 8 * byte)) >> 24)
    return total


@triton.jit
def _part(codes, weight, first: tl.constexpr, FIRST: tl.constexpr, N: tl.constexpr, ASM: tl.constexpr):
    """What one field adds to a query's logits [T], in its factor; the query's weights are from `first` on."""
    # Summed in the low bits of 1.5 * 2**23, which makes a float of it without a conversion.
    total = tl.full(codes[0].shape, 0x4B400000, tl.int32)
    for four in tl.static_range(FIRST // 4, (FIRST + N) // 4):
        total = _dot4(codes[four], weight[first + four], total, ASM)
    return total.to(tl.float32, bitcast=True) - 12582912.0


@triton.jit
def _logit(
    codes, weight, factor, less, i: tl.constexpr,
    R: tl.constexpr, FIELDS: tl.constexpr, N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Query i's logits [T], less `less`."""
    logit = _part(codes, weight, i * (R // 4), 0, N0, ASM) * factor[i * FIELDS] - less
    if N1 > 0:
        logit += _part(codes, weight, i * (R // 4), N0, N1, ASM) * factor[i * FIELDS + 1]
    if N2 > 0:
        logit += _part(codes, weight, i * (R // 4), N0 + N1, N2, ASM) * factor[i * FIELDS + 2]
    return logit


@triton.jit
def _logits(
    row, weight, factor, less, QUERIES: tl.constexpr, R: tl.constexpr, FIELDS: tl.constexpr, N0: tl.constexpr,
    B0: tl.constexpr, N1: tl.constexpr, B1: tl.constexpr, N2: tl.constexpr, B2: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Each query's logits [T] of the rows, base 2, less its `less`."""
    codes = _codes(row, N0, B0, N1, B1, N2, B2)
    logits: tl.tuple = ()
    for i in tl.static_range(QUERIES):
        logits = logits + (_logit(codes, weight, factor, less[i], i, R, FIELDS, N0, N1, N2, ASM),)
    return logits


@triton.jit(
    do_not_specialize=["n_heads", "q_stride", "slots_in_all", "caps_per_request", "first", "turn", "parts", "scale"]
)
def _exponents(
    q, slots, starts, length, cap, clock, place, heads, which, every, rows, decode, weights, fours, factors, exponents,
    tops, totals, wanted, idle, hits, q_stride, slots_in_all, caps_per_request, first, turn, parts, scale,
    n_heads, GROUP: tl.constexpr, QUERIES: tl.constexpr, ASKERS: tl.constexpr, D: tl.constexpr,
    R: tl.constexpr, WORDS: tl.constexpr, TOKENS: tl.constexpr, BINS: tl.constexpr, MOST: tl.constexpr,
    NOTHING: tl.constexpr, HIGHEST: tl.constexpr, PAD: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
    N0: tl.constexpr, B0: tl.constexpr, N1: tl.constexpr, B1: tl.constexpr, N2: tl.constexpr, B2: tl.constexpr,
    FIELDS: tl.constexpr, MOST_FIELDS: tl.constexpr, MOST_DIRECTIONS: tl.constexpr, ASM: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Of a part's tokens: 2 ** (logit - top), where `top` is each query's highest of the part's first tokens; and their
    sum. bfloat16 has room for much higher ones among the later tokens."""
    unit, part, asker = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if PDL:
        gdc_launch_dependents()
    request, head = unit // n_heads, unit % n_heads
    begins = tl.load(place + request)
    tokens = tl.load(length + request) - 1  # the newest one is in the ring
    listed = slots + tl.load(starts + request).to(tl.int64)
    number = first + tl.load(which + head)
    due = is_turn(every, head, clock, turn) & (begins >= 0)
    if (part == 0) & (asker == 0):
        tl.store(wanted + unit * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int32))
        tl.store(idle + unit * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int32))
        tl.store(hits + 2 * unit, 0)
        tl.store(hits + 2 * unit + 1, 0)
    if not due:
        return
    full = tokens >= tl.load(cap + request * caps_per_request + number)
    begin, end = span(tokens, part, parts, TOKENS)
    within, query = tl.arange(0, TOKENS), tl.arange(0, QUERIES)
    table = rows + head.to(tl.int64) * slots_in_all * WORDS
    # Rows are read one turn ahead, their slots two; all that needs no other read is under way at once.
    slot = tl.load(listed + begin + within, mask=begin + within < end, other=0).to(tl.int64)
    later = tl.load(listed + begin + TOKENS + within, mask=begin + TOKENS + within < end, other=0).to(tl.int64)
    counts = scale * _weights(
        q + request.to(tl.int64) * q_stride + tl.load(heads + head) * GROUP * D, decode + head * D * R,
        asker * QUERIES, GROUP, QUERIES, D, R, PAD, ROWS, PRECISION,
    )  # fmt: skip
    if not full:
        return
    row = _words(table + slot * WORDS, begin + within < end, N0, B0, N1, B1, N2, B2)
    slot = later
    _ask(
        counts, weights + unit * GROUP * MOST_DIRECTIONS, factors + unit * GROUP * MOST_FIELDS, asker * QUERIES,
        GROUP, QUERIES, R, PAD, N0, B0, N1, B1, N2, B2, MOST_FIELDS,
    )  # fmt: skip
    tl.debug_barrier()
    weight, factor = _asked(
        fours + unit * GROUP * (MOST_DIRECTIONS // 4), factors + unit * GROUP * MOST_FIELDS, asker * QUERIES, GROUP,
        QUERIES, R, FIELDS, MOST_FIELDS,
    )  # fmt: skip
    mine = exponents + ((begins.to(tl.int64) * n_heads + head * (tokens + 1)) * ASKERS + asker * tokens) * QUERIES
    nothing: tl.tuple = ()
    for _ in tl.static_range(QUERIES):
        nothing = nothing + (0.0,)
    whole = _logits(row, weight, factor, nothing, QUERIES, R, FIELDS, N0, B0, N1, B1, N2, B2, ASM)
    top: tl.tuple = ()
    logits: tl.tuple = ()  # above the query's top
    total: tl.tuple = ()
    for i in tl.static_range(QUERIES):
        top = top + (tl.max(tl.where(begin + within < end, whole[i], NOTHING), 0),)
        logits = logits + (whole[i] - top[i],)
        total = total + (tl.zeros([TOKENS], tl.float32),)
    for start in range(begin, end, TOKENS):
        token = start + TOKENS + within
        row = _words(table + slot * WORDS, token < end, N0, B0, N1, B1, N2, B2)
        slot = tl.load(listed + token + TOKENS, mask=token + TOKENS < end, other=0).to(tl.int64)
        highest = tl.where(start + within < end, HIGHEST, NOTHING)
        found: tl.tuple = ()
        totals_now: tl.tuple = ()
        for i in tl.static_range(QUERIES):
            more = tl.exp2(tl.minimum(logits[i], highest))
            found = found + (more.to(tl.bfloat16),)
            totals_now = totals_now + (total[i] + more,)
        total = totals_now
        where = mine + (start + within).to(tl.int64)[:, None] * QUERIES + query[None, :]
        tl.store(where, _stack(found), mask=(start + within < end)[:, None])
        if start + TOKENS < end:
            logits = _logits(row, weight, factor, top, QUERIES, R, FIELDS, N0, B0, N1, B1, N2, B2, ASM)
    for i in tl.static_range(QUERIES):
        member = asker * QUERIES + i
        if member < GROUP:
            where = (unit * MOST + part) * GROUP + member
            tl.store(tops + where, tl.where(begin < end, top[i], NOTHING))
            tl.store(totals + where, tl.sum(total[i], 0))


@triton.jit
def _read(exponents, tokens, start, end, QUERIES: tl.constexpr, ASKERS: tl.constexpr, COUNT: tl.constexpr,
          RUN: tl.constexpr):  # fmt: skip
    """Of COUNT runs from `start` on, each token's exponents [COUNT, QUERIES], by token, then askers."""
    run, query = start + tl.arange(0, COUNT), tl.arange(0, QUERIES)
    found: tl.tuple = ()
    for step in tl.static_range(RUN):
        for asker in tl.static_range(ASKERS):
            token = (asker * tokens + run * RUN + step).to(tl.int64)
            where = exponents + token[:, None] * QUERIES + query[None, :]
            found = found + (tl.load(where, mask=(run < end)[:, None], other=0.0),)
    return found


@triton.jit(do_not_specialize=["n_heads", "caps_per_request", "first", "turn", "parts", "sink", "window"])
def _scores(
    length, cap, clock, place, which, every, exponents, tops, totals, scores, wanted, caps_per_request, first, turn,
    parts, sink, window, n_heads, GROUP: tl.constexpr, QUERIES: tl.constexpr, ASKERS: tl.constexpr,
    TOKENS: tl.constexpr, COUNT: tl.constexpr, RUN: tl.constexpr, BINS: tl.constexpr, FINE: tl.constexpr,
    LEAST: tl.constexpr, MOST: tl.constexpr, NOTHING: tl.constexpr, SHARED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of the same parts' runs, SHARED programs to a part: a token's mean share of the queries' attention, a run's best;
    and their bins' counts."""
    unit, part, some = tl.program_id(0), tl.program_id(1) // SHARED, tl.program_id(1) % SHARED
    request, head = unit // n_heads, unit % n_heads
    if PDL:
        gdc_launch_dependents()
    tokens, begins = tl.load(length + request) - 1, tl.load(place + request)
    number = first + tl.load(which + head)
    out = (tokens < tl.load(cap + request * caps_per_request + number)) | (begins < 0)
    out = out | (is_turn(every, head, clock, turn) == 0)
    if PDL:
        gdc_wait()
    if out:
        return
    offset = begins.to(tl.int64) * n_heads + head * (tokens + 1)
    mine, theirs = scores + offset, exponents + offset * ASKERS * QUERIES
    low, high = sink // RUN, (tokens + 1 - window) // RUN
    begin, end = span(tokens, part, parts, TOKENS)
    begin, end = begin // RUN, end // RUN
    opening, closing = span(end - begin, some, SHARED, COUNT)
    begin, end = begin + opening, begin + closing
    each_part, query = tl.arange(0, MOST), tl.arange(0, QUERIES)
    found = _read(theirs, tokens, begin, end, QUERIES, ASKERS, COUNT, RUN)  # one turn ahead
    shares: tl.tuple = ()  # what an exponent of this part counts, by query
    for asker in tl.static_range(ASKERS):
        member = asker * QUERIES + query
        where = (unit * MOST + each_part)[:, None] * GROUP + member[None, :]
        there = (each_part < parts)[:, None] & (member < GROUP)[None, :]
        each = tl.load(tops + where, mask=there, other=NOTHING)
        highest = tl.max(each, 0)  # [QUERIES]
        total = tl.sum(tl.load(totals + where, mask=there, other=0.0) * tl.exp2(each - highest[None, :]), 0)
        own = tl.load(tops + (unit * MOST + part) * GROUP + member, mask=member < GROUP, other=NOTHING)
        share = tl.exp2(own - highest - tl.log2(tl.where(member < GROUP, total, 1.0) * GROUP))
        shares = shares + (tl.where(member < GROUP, share, 0.0),)
    counted = tl.zeros([BINS], tl.int32)
    for start in range(begin, end, COUNT):
        now = found
        found = _read(theirs, tokens, start + COUNT, end, QUERIES, ASKERS, COUNT, RUN)
        run = start + tl.arange(0, COUNT)
        here = run < end
        best = tl.zeros([COUNT], tl.float32)
        for step in tl.static_range(RUN):
            score = tl.zeros([COUNT], tl.float32)
            for asker in tl.static_range(ASKERS):
                score += tl.sum(now[step * ASKERS + asker].to(tl.float32) * shares[asker][None, :], 1)
            best = tl.maximum(best, score)
        tl.store(mine + run, best, mask=here)
        here = here & (run >= low) & (run < high)
        counted += tl.histogram(score_bin(best, BINS, FINE, LEAST), BINS, mask=here)
    tl.atomic_add(wanted + unit * BINS + tl.arange(0, BINS), counted, mask=counted > 0, sem="relaxed")


def probe(
    q: torch.Tensor, layer: LayerIndex, slots: torch.Tensor, starts: torch.Tensor, step: StepTables, scale: float,
    sink: int, window: int, work: Workspace,
) -> None:  # fmt: skip
    """A step's queries q [B, Hq, D] (rows may lie apart) against all but the newest of each request's tokens.

    `slots`: the requests' token slots, request b's from starts[b] on. Heads that still hold every token are left out.
    Leaves scores of runs and their bins' counts in `work`."""
    batch, _, dim = q.shape
    heads = layer.heads.numel()
    units = batch * heads
    often = heads if layer.often is None else layer.often  # the others leave at once
    parts, group, directions = work.parts(max(1, round(batch * often))), work.group, layer.decode.shape[2]
    assert directions <= MOST_DIRECTIONS
    pad = max(16, triton.next_power_of_2(directions))
    most = 4 if directions <= 64 else 2 if directions <= 128 else 1  # whose weights a thread has room for
    queries = min(most, triton.next_power_of_2(group))
    askers = triton.cdiv(group, queries)
    sizes = dict(
        n_heads=heads, GROUP=group, QUERIES=queries, ASKERS=askers, TOKENS=READ, BINS=BINS, MOST=MOST_PARTS,
        NOTHING=_NOTHING, PDL=overlaps(q.device), num_warps=WARPS,
    )  # fmt: skip
    _exponents[(units, parts, askers)](
        q, slots, starts, step.length, step.cap, step.clock, work.place, layer.heads, layer.which, layer.every,
        layer.rows, layer.decode, work.weights, work.fours, work.factors, work.exponents, work.top, work.total,
        work.wanted, work.idle, work.hits, q.stride(0), layer.rows.shape[1], step.cap.shape[1], layer.first, layer.turn,
        parts, scale * 1.4426950408889634, D=dim, R=directions, WORDS=layer.rows.shape[2], HIGHEST=_HIGHEST, PAD=pad,
        ROWS=min(max(16, triton.next_power_of_2(dim)), max(16, 4096 // pad)),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32", **flat_fields(layer.fields),
        FIELDS=len(layer.fields), MOST_FIELDS=MOST_FIELDS, MOST_DIRECTIONS=MOST_DIRECTIONS,
        ASM=not knobs.runtime.interpret, **sizes,
    )  # fmt: skip
    _scores[(units, parts * _SHARED)](
        step.length, step.cap, step.clock, work.place, layer.which, layer.every, work.exponents, work.top, work.total,
        work.scores, work.wanted, step.cap.shape[1], layer.first, layer.turn, parts, sink, window,
        COUNT=32 * WARPS * (1 if layer.run > 1 else 4), RUN=layer.run, FINE=FINE, LEAST=LEAST, SHARED=_SHARED,
        **early(overlaps(q.device)), **sizes,
    )  # fmt: skip
