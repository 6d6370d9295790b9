"""Scores of every run of a request's tokens by its heads' key indexes: twin of ops/reference/index.py's `probe`.

Two launches: logits of all tokens with each split's maximum and sum of exponents; then scores and how many fall in
which bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from hetero_sglang.attention.kernels.store import StepTables
from hetero_sglang.ops.reference.choose import BINS
from hetero_sglang.ops.triton.index import flat_fields, pads
from hetero_sglang.ops.triton.workspace import TILE, Workspace
from hetero_sglang.profile.index_plan import WORD, Fields

_TOKENS = 128  # whose codes a program unpacks at once
_FINE = 20  # low bits of a score that its bin leaves out


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
def _field_logits(
    query, words, here, decode, at, D: tl.constexpr, R: tl.constexpr, FIRST: tl.constexpr, FIRST_WORD: tl.constexpr,
    N: tl.constexpr, B: tl.constexpr, PAD: tl.constexpr, WORD_BITS: tl.constexpr,
):  # fmt: skip
    """What N directions in B bits add to the logits [T, 16] of tokens whose rows begin at words [T]."""
    way = tl.arange(0, PAD)
    real = way < N
    turn = tl.load(decode + at[:, None] * R + FIRST + way[None, :], mask=(at < D)[:, None] & real[None, :], other=0.0)
    weight = tl.dot(query, turn, input_precision="ieee")  # [16, PAD]
    place = words[:, None] + FIRST_WORD + (way // (WORD_BITS // B))[None, :]
    word = tl.load(place, mask=here[:, None] & real[None, :], other=0).to(tl.int32)
    code = (word >> ((way % (WORD_BITS // B)) * B)[None, :]) & ((1 << B) - 1)
    return tl.dot(code.to(tl.float16), tl.trans(weight.to(tl.float16)))


@triton.jit(do_not_specialize=["q_stride", "slots_in_all", "caps_per_request", "first", "splits", "scale", "context"])
def _logits(
    q, slots, starts, length, cap, heads, rows, decode, out, tops, totals, wanted, idle, hits,
    q_stride, slots_in_all, caps_per_request, first, splits, scale, context,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, R: tl.constexpr, WORDS: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_D: tl.constexpr, BINS: tl.constexpr, TILE: tl.constexpr, MOST: tl.constexpr,
    N0: tl.constexpr, B0: tl.constexpr, N1: tl.constexpr, B1: tl.constexpr, N2: tl.constexpr, B2: tl.constexpr,
    PAD0: tl.constexpr, PAD1: tl.constexpr, PAD2: tl.constexpr, WORD_BITS: tl.constexpr,
):  # fmt: skip
    unit, split = tl.program_id(0), tl.program_id(1)
    request, compressed = unit // HEADS, unit % HEADS
    if split == 0:
        bins = tl.arange(0, BINS)
        nothing = tl.zeros([BINS], tl.int32)
        tl.store(wanted + unit * BINS + bins, nothing)
        tl.store(idle + unit * BINS + bins, nothing)
        tl.store(hits + unit, 0)
    tokens = tl.load(length + request) - 1  # the newest one is in the ring
    if tokens < tl.load(cap + request * caps_per_request + first + compressed):
        return
    begin, end = span(tokens, split, splits, TILE)
    member, at, within = tl.arange(0, 16), tl.arange(0, BLOCK_D), tl.arange(0, TOKENS)
    mine = q + request.to(tl.int64) * q_stride + tl.load(heads + compressed) * GROUP * D
    both = (member < GROUP)[:, None] & (at < D)[None, :]
    query = tl.load(mine + member[:, None] * D + at[None, :], mask=both, other=0.0).to(tl.float32) * scale
    turn = decode + compressed * D * R
    listed = slots + tl.load(starts + request).to(tl.int64)
    table = rows + compressed.to(tl.int64) * slots_in_all * WORDS
    top = tl.full([16], float("-inf"), tl.float32)
    total = tl.zeros([16], tl.float32)
    place_out = out + unit.to(tl.int64) * GROUP * context
    for start in range(begin, end, TOKENS):
        token = start + within
        here = token < end
        words = table + tl.load(listed + token, mask=here, other=0).to(tl.int64) * WORDS
        logits = _field_logits(query, words, here, turn, at, D, R, 0, 0, N0, B0, PAD0, WORD_BITS)
        if N1 > 0:
            logits += _field_logits(
                query, words, here, turn, at, D, R, N0, N0 * B0 // WORD_BITS, N1, B1, PAD1, WORD_BITS
            )
        if N2 > 0:
            logits += _field_logits(
                query, words, here, turn, at, D, R, N0 + N1, (N0 * B0 + N1 * B1) // WORD_BITS, N2, B2, PAD2, WORD_BITS
            )
        where = place_out + member[None, :].to(tl.int64) * context + token[:, None]
        tl.store(where, logits, mask=here[:, None] & (member < GROUP)[None, :])
        logits = tl.where(here[:, None], logits, float("-inf"))
        highest = tl.maximum(top, tl.max(logits, 0))
        total = total * tl.exp2(top - highest) + tl.sum(tl.exp2(logits - highest[None, :]), 0)
        top = highest
    where = (unit * MOST + split) * GROUP + member
    tl.store(tops + where, top, mask=member < GROUP)
    tl.store(totals + where, total, mask=member < GROUP)


@triton.jit(do_not_specialize=["caps_per_request", "first", "splits", "context", "runs_in_all", "sink", "window"])
def _scores(
    length, cap, logits, tops, totals, scores, wanted,
    caps_per_request, first, splits, context, runs_in_all, sink, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, RUN: tl.constexpr, BINS: tl.constexpr, TILE: tl.constexpr,
    SPLITS: tl.constexpr, MOST: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    unit, split = tl.program_id(0), tl.program_id(1)
    request = unit // HEADS
    tokens = tl.load(length + request) - 1
    if tokens < tl.load(cap + request * caps_per_request + first + unit % HEADS):
        return
    low, high = sink // RUN, (tokens + 1 - window) // RUN
    begin, end = span(tokens // RUN, split, splits, TILE // RUN)
    part, run, within = tl.arange(0, SPLITS), tl.arange(0, TILE // RUN), tl.arange(0, RUN)
    counted = tl.zeros([BINS], tl.int32)
    for start in range(begin, end, TILE // RUN):
        number = start + run
        here = number < end
        token = number[:, None] * RUN + within[None, :]  # [runs, RUN]
        score = tl.zeros([TILE // RUN, RUN], tl.float32)
        for member in tl.static_range(GROUP):
            where = (unit * MOST + part) * GROUP + member
            each = tl.load(tops + where, mask=part < splits, other=float("-inf"))
            top = tl.max(each, 0)
            total = tl.sum(tl.load(totals + where, mask=part < splits, other=0.0) * tl.exp2(each - top), 0)
            place = logits + (unit * GROUP + member).to(tl.int64) * context + token
            value = tl.load(place, mask=here[:, None], other=float("-inf"))
            score += tl.exp2(value - top) * (1.0 / (total * GROUP))
        best = tl.max(score, 1)
        tl.store(scores + unit.to(tl.int64) * runs_in_all + number, best, mask=here)
        # The last bin is no score's, as they are at most 1: it takes what may not come in.
        may = here & (number >= low) & (number < high)
        counted += tl.histogram(tl.where(may, best.to(tl.int32, bitcast=True) >> FINE, BINS - 1), BINS)
    bins = tl.arange(0, BINS)
    tl.atomic_add(wanted + unit * BINS + bins, counted, mask=(counted > 0) & (bins < BINS - 1), sem="relaxed")


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
    splits, group = work.splits(units), work.group
    sizes = dict(HEADS=heads, GROUP=group, BINS=BINS, TILE=TILE, MOST=work.top.shape[1])
    _logits[(units, splits)](
        q, slots, starts, step.length, step.cap, layer.heads, layer.rows, layer.decode, work.logits, work.top,
        work.total, work.wanted, work.idle, work.hits, q.stride(0), layer.rows.shape[1], step.cap.shape[1],
        layer.first, splits, scale * 1.4426950408889634, work.context, **sizes,
        D=dim, R=layer.decode.shape[2], WORDS=layer.rows.shape[2], TOKENS=_TOKENS,
        BLOCK_D=max(16, triton.next_power_of_2(dim)), WORD_BITS=WORD, **flat_fields(layer.fields), **pads(layer.fields),
        num_warps=4,
    )  # fmt: skip
    _scores[(units, splits)](
        step.length, step.cap, work.logits, work.top, work.total, work.scores, work.wanted, step.cap.shape[1],
        layer.first, splits, work.context, work.scores.shape[1], sink, window, **sizes, RUN=work.run,
        SPLITS=work.top.shape[1], FINE=_FINE, num_warps=8,
    )  # fmt: skip
