"""Scores of every run of a request's tokens by its heads' key indexes: twin of ops/reference/index.py's `probe`.

Two launches: logits of all tokens with each part's maximum and sum of exponents; then scores and how many fall in
which bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from hetero_sglang.attention.kernels.store import StepTables
from hetero_sglang.ops.reference.choose import BINS, FINE, LEAST
from hetero_sglang.ops.triton.index import flat_fields, pads
from hetero_sglang.ops.triton.workspace import MOST_PARTS, TILE, Workspace
from hetero_sglang.profile.index_plan import WORD, Fields

_TOKENS = 128  # whose codes a program unpacks at once
_NOTHING = -1e30  # a logit below all: finite, so that differences are numbers


@dataclass(frozen=True)
class LayerIndex:
    """One layer's key index: `heads` [C] int32 of the layer's, `rows` int16 [C, slots, words], float32 `encode`,
    `decode` [C, D, R] and `offset` [C, R]; `first`: compressed heads in earlier layers."""

    heads: torch.Tensor
    rows: torch.Tensor
    encode: torch.Tensor
    decode: torch.Tensor
    offset: torch.Tensor
    fields: Fields
    first: int


@triton.jit
def span(length, split, splits, TILE: tl.constexpr):
    """This split's share [begin, end) of `length` things, in whole tiles."""
    size = tl.cdiv(tl.cdiv(length, splits), TILE) * TILE
    return tl.minimum(split * size, length), tl.minimum((split + 1) * size, length)


@triton.jit
def score_bin(score, BINS: tl.constexpr, FINE: tl.constexpr, LEAST: tl.constexpr):
    """Twin of ops/reference/choose.py's; negative for what is marked as held."""
    bin = tl.minimum(tl.maximum((score.to(tl.int32, bitcast=True) >> FINE) - LEAST, 0), BINS - 1)
    return tl.where(score < 0, -1, bin)


@triton.jit
def _weights(
    query, scale, decode, D: tl.constexpr, R: tl.constexpr, GROUP: tl.constexpr, FIRST: tl.constexpr, N: tl.constexpr,
    PAD: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """What each of N directions' codes counts for each query: [PAD, BLOCK_G] float16, 0 beyond N and GROUP."""
    way, member = tl.arange(0, PAD), tl.arange(0, BLOCK_G)
    weight = tl.zeros([PAD, BLOCK_G], tl.float32)
    for start in range(0, D, 32):
        at = start + tl.arange(0, 32)
        both = (way < N)[:, None] & (at < D)[None, :]
        turn = tl.load(decode + at[None, :] * R + FIRST + way[:, None], mask=both, other=0.0)
        both = (at < D)[:, None] & (member < GROUP)[None, :]
        asked = tl.load(query + member[None, :] * D + at[:, None], mask=both, other=0.0)
        weight = tl.dot(turn, asked.to(tl.float32), weight, input_precision="tf32x3")
    return (weight * scale).to(tl.float16)


@triton.jit
def _codes(
    words, here, FIRST_WORD: tl.constexpr, N: tl.constexpr, B: tl.constexpr, PAD: tl.constexpr, WORD_BITS: tl.constexpr
):  # fmt: skip
    """Codes [T, PAD] float16 of N directions in B bits of tokens whose rows begin at words [T]; a word is read once."""
    each: tl.constexpr = WORD_BITS // B
    word = tl.arange(0, PAD // each)
    real = here[:, None] & (word * each < N)[None, :]
    packed = tl.load(words[:, None] + FIRST_WORD + word[None, :], mask=real, other=0).to(tl.int32)
    code = tl.join(packed, packed >> 8)  # halves of halves: a thread keeps a word's codes together
    code = tl.join(code, code >> 4)
    if B < 4:
        code = tl.join(code, code >> 2)
    if B < 2:
        code = tl.join(code, code >> 1)
    return tl.reshape(code & ((1 << B) - 1), [words.shape[0], PAD]).to(tl.float16)


@triton.jit(do_not_specialize=["q_stride", "slots_in_all", "caps_per_request", "first", "parts", "scale"])
def _logits(
    q, slots, starts, length, cap, place, heads, rows, decode, out, tops, totals, wanted, idle, hits,
    q_stride, slots_in_all, caps_per_request, first, parts, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, R: tl.constexpr, WORDS: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_G: tl.constexpr, BINS: tl.constexpr, MOST: tl.constexpr,
    NOTHING: tl.constexpr, N0: tl.constexpr, B0: tl.constexpr, N1: tl.constexpr, B1: tl.constexpr, N2: tl.constexpr,
    B2: tl.constexpr, PAD0: tl.constexpr, PAD1: tl.constexpr, PAD2: tl.constexpr, WORD_BITS: tl.constexpr,
):  # fmt: skip
    unit, part = tl.program_id(0), tl.program_id(1)
    request, compressed = unit // HEADS, unit % HEADS
    if part == 0:
        tl.store(wanted + unit * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int32))
        tl.store(idle + unit * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int32))
        tl.store(hits + unit, 0)
    tokens = tl.load(length + request) - 1  # the newest one is in the ring
    begins = tl.load(place + request)
    if (tokens < tl.load(cap + request * caps_per_request + first + compressed)) | (begins < 0):
        return
    begin, end = span(tokens, part, parts, TOKENS)
    member, within = tl.arange(0, BLOCK_G), tl.arange(0, TOKENS)
    listed = slots + tl.load(starts + request).to(tl.int64)
    slot = tl.load(listed + begin + within, mask=begin + within < end, other=0)  # read one turn ahead
    query = q + request.to(tl.int64) * q_stride + tl.load(heads + compressed) * GROUP * D
    turn = decode + compressed * D * R
    weight = _weights(query, scale, turn, D, R, GROUP, 0, N0, PAD0, BLOCK_G)
    if N1 > 0:
        second = _weights(query, scale, turn, D, R, GROUP, N0, N1, PAD1, BLOCK_G)
    if N2 > 0:
        third = _weights(query, scale, turn, D, R, GROUP, N0 + N1, N2, PAD2, BLOCK_G)
    table = rows + compressed.to(tl.int64) * slots_in_all * WORDS
    place_out = out + (begins.to(tl.int64) * HEADS + compressed * (tokens + 1)) * GROUP
    # The softmax runs in every place of the tile by itself: threads meet at its end only.
    top = tl.full([TOKENS, BLOCK_G], NOTHING, tl.float32)
    total = tl.zeros([TOKENS, BLOCK_G], tl.float32)
    for start in range(begin, end, TOKENS):
        token = start + within
        here = token < end
        words = table + slot.to(tl.int64) * WORDS
        slot = tl.load(listed + token + TOKENS, mask=token + TOKENS < end, other=0)
        logits = tl.dot(_codes(words, here, 0, N0, B0, PAD0, WORD_BITS), weight)  # [TOKENS, BLOCK_G]
        if N1 > 0:
            logits = tl.dot(_codes(words, here, N0 * B0 // WORD_BITS, N1, B1, PAD1, WORD_BITS), second, logits)
        if N2 > 0:
            codes = _codes(words, here, (N0 * B0 + N1 * B1) // WORD_BITS, N2, B2, PAD2, WORD_BITS)
            logits = tl.dot(codes, third, logits)
        where = place_out + token[:, None] * GROUP + member[None, :]
        tl.store(where, logits, mask=here[:, None] & (member < GROUP)[None, :])
        logits = tl.where(here[:, None], logits, NOTHING)
        highest = tl.maximum(top, logits)
        total = total * tl.exp2(top - highest) + tl.where(here[:, None], tl.exp2(logits - highest), 0.0)
        top = highest
    highest = tl.max(top, 0)
    where = (unit * MOST + part) * GROUP + member
    tl.store(tops + where, highest, mask=member < GROUP)
    tl.store(totals + where, tl.sum(total * tl.exp2(top - highest[None, :]), 0), mask=member < GROUP)


@triton.jit(do_not_specialize=["caps_per_request", "first", "parts", "sink", "window"])
def _scores(
    length, cap, place, logits, tops, totals, scores, wanted, caps_per_request, first, parts, sink, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, BLOCK_G: tl.constexpr, RUN: tl.constexpr, BINS: tl.constexpr,
    RUNS: tl.constexpr, MOST: tl.constexpr, FINE: tl.constexpr, LEAST: tl.constexpr, NOTHING: tl.constexpr,
):  # fmt: skip
    unit, part = tl.program_id(0), tl.program_id(1)
    request = unit // HEADS
    tokens = tl.load(length + request) - 1
    begins = tl.load(place + request)
    if (tokens < tl.load(cap + request * caps_per_request + first + unit % HEADS)) | (begins < 0):
        return
    mine = begins.to(tl.int64) * HEADS + unit % HEADS * (tokens + 1)
    low, high = sink // RUN, (tokens + 1 - window) // RUN
    begin, end = span(tokens // RUN, part, parts, RUNS)
    every, member, run, within = tl.arange(0, MOST), tl.arange(0, BLOCK_G), tl.arange(0, RUNS), tl.arange(0, RUN)
    real = member < GROUP
    where = (unit * MOST + every)[:, None] * GROUP + member[None, :]
    there = (every < parts)[:, None] & real[None, :]
    each = tl.load(tops + where, mask=there, other=NOTHING)
    top = tl.max(each, 0)  # [BLOCK_G]
    total = tl.sum(tl.load(totals + where, mask=there, other=0.0) * tl.exp2(each - top[None, :]), 0)
    share = tl.where(real, 1.0 / (tl.where(real, total, 1.0) * GROUP), 0.0)
    counted = tl.zeros([BINS], tl.int32)
    for start in range(begin, end, RUNS):
        number = start + run
        here = number < end
        token = number[:, None] * RUN + within[None, :]  # [RUNS, RUN]
        from_ = logits + (mine + token)[:, :, None] * GROUP + member[None, None, :]
        value = tl.load(from_, mask=here[:, None, None] & real[None, None, :], other=float("-inf"))
        best = tl.max(tl.sum(tl.exp2(value - top[None, None, :]) * share[None, None, :], 2), 1)
        tl.store(scores + mine + number, best, mask=here)
        bin = score_bin(best, BINS, FINE, LEAST)
        counted += tl.histogram(bin, BINS, mask=here & (number >= low) & (number < high))
    tl.atomic_add(wanted + unit * BINS + tl.arange(0, BINS), counted, mask=counted > 0, sem="relaxed")


def probe(
    q: torch.Tensor, layer: LayerIndex, slots: torch.Tensor, starts: torch.Tensor, step: StepTables, scale: float,
    sink: int, window: int, work: Workspace,
) -> None:  # fmt: skip
    """A step's queries q [B, Hq, D] (rows may lie apart) against all but the newest of each request's tokens.

    `slots`: the requests' token slots, request b's from starts[b] on. Heads that still hold every token are left out.
    Leaves scores of runs and their bins' counts in `work`.
    """
    batch, _, dim = q.shape
    heads = layer.heads.numel()
    units = batch * heads
    parts, group = work.parts(units), work.group
    sizes = dict(HEADS=heads, GROUP=group, MOST=MOST_PARTS, NOTHING=_NOTHING)
    _logits[(units, parts)](
        q, slots, starts, step.length, step.cap, work.place, layer.heads, layer.rows, layer.decode, work.logits,
        work.top, work.total, work.wanted, work.idle, work.hits, q.stride(0), layer.rows.shape[1], step.cap.shape[1],
        layer.first, parts, scale * 1.4426950408889634, **sizes,
        D=dim, R=layer.decode.shape[2], WORDS=layer.rows.shape[2], TOKENS=_TOKENS, BINS=BINS,
        BLOCK_G=max(8, triton.next_power_of_2(group)), WORD_BITS=WORD, **flat_fields(layer.fields),
        **pads(layer.fields), num_warps=4,
        maxnreg=64 if group <= 8 else 128,  # a processor runs eight, or four, at once
    )  # fmt: skip
    _scores[(units, parts)](
        step.length, step.cap, work.place, work.logits, work.top, work.total, work.scores, work.wanted,
        step.cap.shape[1], layer.first, parts, sink, window, **sizes,
        BLOCK_G=triton.next_power_of_2(group), RUN=work.run, BINS=BINS, RUNS=TILE // work.run, FINE=FINE, LEAST=LEAST,
        num_warps=8,
    )  # fmt: skip
