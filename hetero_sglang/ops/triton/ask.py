"""What many queries of a request want by its heads' key indexes: twin of ops/reference/index.py's `ask`.

Codes and weights are multiplied in matrices, twice: once for each query's sum of exponents, once for its attention."""

import torch
import triton
import triton.language as tl

from hetero_sglang.ops.base import LayerIndex, StepTables
from hetero_sglang.ops.reference.choose import BINS, FINE, LEAST
from hetero_sglang.ops.triton.index import flat_fields
from hetero_sglang.ops.triton.probe import score_bin, span
from hetero_sglang.ops.triton.workspace import Workspace
from hetero_sglang.profile.index_plan import WORD

_PARTS = 32  # of a head's tokens, at most
_ASKERS = 64  # queries at a time
_MOST = 100.0  # by which another logit may be higher: sums stay numbers
_NOTHING = -1e30  # a logit below all: finite, so that differences are numbers


@triton.jit
def _fields(way, N0: tl.constexpr, B0: tl.constexpr, N1: tl.constexpr, B1: tl.constexpr, N2: tl.constexpr,
            B2: tl.constexpr, WORD: tl.constexpr):  # fmt: skip
    """Of direction `way`: the word that its code is in, by how much that is to be shifted, and the code's bits."""
    bits = tl.where(way < N0, B0, tl.where(way < N0 + N1, B1, B2))
    inner = tl.where(way < N0, way, tl.where(way < N0 + N1, way - N0, way - N0 - N1))
    first = tl.where(way < N0, 0, tl.where(way < N0 + N1, N0 * B0 // WORD, (N0 * B0 + N1 * B1) // WORD))
    return first + inner * bits // WORD, inner * bits % WORD, bits


@triton.jit
def _codes(table, slot, here, way, word, shift, bits, R: tl.constexpr, WORDS: tl.constexpr):
    """Codes float32 [T, PAD] of the tokens at `slot` [T]."""
    words = table + slot[:, None] * WORDS + word[None, :]
    packed = tl.load(words, mask=here[:, None] & (way < R)[None, :], other=0).to(tl.uint16, bitcast=True).to(tl.int32)
    return ((packed >> shift[None, :]) & ((1 << bits) - 1)[None, :]).to(tl.float32)


@triton.jit(do_not_specialize=["askers", "slots_in_all", "first", "parts"])
def _sums(
    slots, starts, lengths, cap, which, rows, weights, tops, totals, askers, slots_in_all, first, parts,
    R: tl.constexpr, PAD: tl.constexpr, WORDS: tl.constexpr, TOKENS: tl.constexpr, ASKERS: tl.constexpr,
    NOTHING: tl.constexpr, MOST: tl.constexpr, PRECISION: tl.constexpr, N0: tl.constexpr, B0: tl.constexpr,
    N1: tl.constexpr, B1: tl.constexpr, N2: tl.constexpr, B2: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    """Of a part's tokens: a logit of each query's that is as high as others, and the sum of exponents beside that. The
    highest of the first few is: what all tokens' are compared with would have to be found in every round."""
    head, part, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths)
    if tl.load(cap + first + tl.load(which + head)) >= length:
        return
    begin, end = span(length - 1, part, parts, TOKENS)
    slots += tl.load(starts)
    way, within = tl.arange(0, PAD), tl.arange(0, TOKENS)
    member = block * ASKERS + tl.arange(0, ASKERS)
    word, shift, bits = _fields(way, N0, B0, N1, B1, N2, B2, WORD)
    table = rows + head.to(tl.int64) * slots_in_all * WORDS
    mine = weights + (head.to(tl.int64) * askers + member)[None, :] * R + way[:, None]
    weight = tl.load(mine, mask=(member < askers)[None, :] & (way < R)[:, None], other=0.0)  # [PAD, ASKERS]
    here = begin + within < end
    slot = tl.load(slots + begin + within, mask=here, other=0).to(tl.int64)
    code = _codes(table, slot, here, way, word, shift, bits, R, WORDS)
    near = tl.max(tl.where(here[:, None], tl.dot(code, weight, input_precision=PRECISION), NOTHING), 0)  # [ASKERS]
    total = tl.zeros([TOKENS, ASKERS], tl.float32)
    for start in range(begin, end, TOKENS):
        here = start + within < end
        slot = tl.load(slots + start + within, mask=here, other=0).to(tl.int64)
        code = _codes(table, slot, here, way, word, shift, bits, R, WORDS)
        above = tl.dot(code, weight, input_precision=PRECISION) - near[None, :]
        total += tl.where(here[:, None], tl.exp2(tl.minimum(above, MOST)), 0.0)
    where = (head * parts + part) * askers + member
    tl.store(tops + where, near, mask=member < askers)
    tl.store(totals + where, tl.sum(total, 0), mask=member < askers)


@triton.jit(do_not_specialize=["askers", "parts"])
def _whole(
    tops, totals, wholes, wanted, idle, hits, askers, parts,
    ASKERS: tl.constexpr, PARTS: tl.constexpr, BINS: tl.constexpr, NOTHING: tl.constexpr,
):  # fmt: skip
    """The base-2 logarithm of each query's sum over all parts; and `choose`'s counts begin at nothing."""
    head, block = tl.program_id(0), tl.program_id(1)
    if block == 0:
        tl.store(wanted + head * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int32))
        tl.store(idle + head * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int32))
        tl.store(hits + 2 * head + tl.arange(0, 2), tl.zeros([2], tl.int32))
    part, member = tl.arange(0, PARTS), block * ASKERS + tl.arange(0, ASKERS)
    there = (part < parts)[:, None] & (member < askers)[None, :]
    where = (head * parts + part)[:, None] * askers + member[None, :]
    top = tl.load(tops + where, mask=there, other=NOTHING)
    highest = tl.max(top, 0)
    total = tl.sum(tl.load(totals + where, mask=there, other=0.0) * tl.exp2(top - highest[None, :]), 0)
    total = tl.where(total > 0, total, 1.0)  # of heads that did not look
    tl.store(wholes + head * askers + member, highest + tl.log2(total), mask=member < askers)


@triton.jit(do_not_specialize=["queries", "slots_in_all", "first", "parts", "sink", "window"])
def _best(
    slots, starts, lengths, cap, which, rows, weights, wholes, scores, wanted, queries, slots_in_all, first, parts,
    sink, window, GROUP: tl.constexpr, R: tl.constexpr, PAD: tl.constexpr, WORDS: tl.constexpr,
    TOKENS: tl.constexpr, QUERIES: tl.constexpr, RUN: tl.constexpr, BINS: tl.constexpr, FINE: tl.constexpr,
    LEAST: tl.constexpr, PRECISION: tl.constexpr, N0: tl.constexpr, B0: tl.constexpr, N1: tl.constexpr,
    B1: tl.constexpr, N2: tl.constexpr, B2: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    """Of the same parts' runs: the most that a query's group looks at one of its tokens; and their bins' counts."""
    head, part = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths)
    if tl.load(cap + first + tl.load(which + head)) >= length:
        return
    tokens = length - 1
    begin, end = span(tokens, part, parts, TOKENS)
    slots += tl.load(starts)
    way, within, run = tl.arange(0, PAD), tl.arange(0, TOKENS), tl.arange(0, TOKENS // RUN)
    word, shift, bits = _fields(way, N0, B0, N1, B1, N2, B2, WORD)
    table = rows + head.to(tl.int64) * slots_in_all * WORDS
    low, high = sink // RUN, (length - window) // RUN
    mine = scores + head.to(tl.int64) * length
    counted = tl.zeros([BINS], tl.int32)
    for start in range(begin, end, TOKENS):
        here = start + within < end
        slot = tl.load(slots + start + within, mask=here, other=0).to(tl.int64)
        code = _codes(table, slot, here, way, word, shift, bits, R, WORDS)
        best = tl.zeros([TOKENS], tl.float32)
        for block in range(0, queries, QUERIES):
            query = block + tl.arange(0, QUERIES)
            real = query < queries
            each = tl.zeros([TOKENS, QUERIES], tl.float32)
            for member in range(GROUP):
                asker = (head * GROUP + member) * queries + query
                theirs = weights + asker.to(tl.int64)[None, :] * R + way[:, None]
                weight = tl.load(theirs, mask=real[None, :] & (way < R)[:, None], other=0.0)
                whole = tl.load(wholes + asker, mask=real, other=0.0)
                logit = tl.dot(code, weight, input_precision=PRECISION) - whole[None, :]
                each += tl.exp2(tl.minimum(logit, 0.0))
            best = tl.maximum(best, tl.max(tl.where(real[None, :], each, 0.0), 1) * (1.0 / GROUP))
        number = start // RUN + run
        complete = (number + 1) * RUN <= tokens
        most = tl.max(tl.reshape(best, [TOKENS // RUN, RUN]), 1)
        tl.store(mine + number, most, mask=complete)
        inside = complete & (number >= low) & (number < high)
        counted += tl.histogram(score_bin(most, BINS, FINE, LEAST), BINS, mask=inside)
    tl.atomic_add(wanted + head * BINS + tl.arange(0, BINS), counted, mask=counted > 0, sem="relaxed")


def ask(
    q: torch.Tensor, layer: LayerIndex, slots: torch.Tensor, starts: torch.Tensor, step: StepTables, length: int,
    scale: float, sink: int, window: int, work: Workspace,
) -> torch.Tensor:  # fmt: skip
    """As a step of many requests that are the same one: what each query q [n, Hq, D] scores is left to the best of all.
    It is every head's turn by the step's clock. Returns the scores [I, U] of the tokens' runs, of full heads alone; not
    in a graph, which is made for any `length`."""
    heads, _, directions = layer.decode.shape
    group, count = work.group, len(q)
    queries = q.unflatten(1, (-1, group)).index_select(1, layer.heads).float()  # [n, I, G, D]
    weights = torch.einsum("nigd,idr->ignr", queries, layer.decode) * (scale * 1.4426950408889634)
    weights = weights.flatten(1, 2).contiguous()  # [I, G * n, R]
    askers = group * count
    block = min(_ASKERS, max(16, triton.next_power_of_2(count)))
    pad = max(16, triton.next_power_of_2(directions))
    tokens = max(16, min(64, 4096 // pad))
    parts = max(1, min(_PARTS, length // (2 * tokens)))
    tops, totals = weights.new_empty(2, heads, parts, askers)
    wholes = weights.new_empty(heads, askers)
    sizes = dict(
        R=directions, PAD=pad, WORDS=layer.rows.shape[2], TOKENS=tokens, WORD=WORD, num_warps=4,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32", **flat_fields(layer.fields),
    )  # fmt: skip
    work.plan(step)
    _sums[(heads, parts, triton.cdiv(askers, _ASKERS))](
        slots, starts, step.length, step.cap, layer.which, layer.rows, weights, tops, totals, askers,
        layer.rows.shape[1], layer.first, parts, ASKERS=_ASKERS, NOTHING=_NOTHING, MOST=_MOST, **sizes,
    )  # fmt: skip
    _whole[(heads, triton.cdiv(askers, _ASKERS))](
        tops, totals, wholes, work.wanted, work.idle, work.hits, askers, parts, ASKERS=_ASKERS, PARTS=_PARTS, BINS=BINS,
        NOTHING=_NOTHING,
    )  # fmt: skip
    _best[(heads, parts)](
        slots, starts, step.length, step.cap, layer.which, layer.rows, weights, wholes, work.scores, work.wanted,
        count, layer.rows.shape[1], layer.first, parts, sink, window, GROUP=group, QUERIES=block, RUN=layer.run,
        BINS=BINS, FINE=FINE, LEAST=LEAST, **sizes,
    )  # fmt: skip
    return work.scores[: heads * length].view(heads, length)[:, : (length - 1) // layer.run]
