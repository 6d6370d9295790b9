"""What many queries of a request want by its heads' key indexes: twin of ops/reference/index.py's `ask`.

Codes and weights are multiplied in matrices, twice: once for each query's sum of exponents, once for its attention."""

import torch
import triton
import triton.language as tl

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.ops.base import StepTables
from hetero_sglang.ops.reference.choose import BINS, FINE, LEAST
from hetero_sglang.ops.triton.choose import place_row
from hetero_sglang.ops.triton.index import flat_fields
from hetero_sglang.ops.triton.probe import score_bin, span
from hetero_sglang.ops.triton.workspace import Workspace
from hetero_sglang.profile.index_plan import WORD

_PARTS = 64  # of a head's tokens, at most
_ROOM = 8  # words, at least: the compiler's gather wants something for every thread
_COUNTERS = 1024  # programs that count, some for each unit
_MARKERS = 32  # of a head
_ASKERS = 256  # queries whose exponents are added up at a time
_SUMMANDS = 8192  # of all of them, at a time
_TOGETHER = 64  # columns of what a group's queries make of a token, at most
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
def _packed(table, slots, token, end, WORDS: tl.constexpr, ROOM: tl.constexpr):
    """The words int32 [T, ROOM] of tokens [T]."""
    here, word = token < end, tl.arange(0, ROOM)
    slot = tl.load(slots + token, mask=here, other=0).to(tl.int64)
    words = table + slot[:, None] * WORDS + word[None, :]
    packed = tl.load(words, mask=here[:, None] & (word < WORDS)[None, :], other=0)
    return packed.to(tl.uint16, bitcast=True).to(tl.int32)


@triton.jit
def _codes(packed, word, shift, bits, TYPE: tl.constexpr):
    """Codes [T, PAD] of words [T, ROOM]."""
    word = tl.minimum(word, packed.shape[1] - 1)  # beyond an index's directions there is none
    words = tl.gather(packed, tl.broadcast_to(word[None, :], [packed.shape[0], word.shape[0]]), 1)
    return ((words >> shift[None, :]) & ((1 << bits) - 1)[None, :]).to(TYPE)


@triton.jit(do_not_specialize=["askers", "slots_in_all", "first", "parts"])
def _sums(
    slots, starts, lengths, cap, which, rows, weights, tops, totals, askers, slots_in_all, first, parts,
    R: tl.constexpr, PAD: tl.constexpr, WORDS: tl.constexpr, ROOM: tl.constexpr, TOKENS: tl.constexpr,
    ASKERS: tl.constexpr, NOTHING: tl.constexpr, MOST: tl.constexpr, N0: tl.constexpr, B0: tl.constexpr,
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
    packed = _packed(table, slots, begin + within, end, WORDS, ROOM)
    logit = tl.dot(_codes(packed, word, shift, bits, weight.dtype), weight, input_precision="ieee")
    near = tl.max(tl.where((begin + within < end)[:, None], logit, NOTHING), 0)  # [ASKERS]
    total = tl.zeros([TOKENS, ASKERS], tl.float32)
    for start in range(begin, end, TOKENS):
        code = _codes(packed, word, shift, bits, weight.dtype)
        packed = _packed(table, slots, start + TOKENS + within, end, WORDS, ROOM)  # is on its way meanwhile
        above = tl.dot(code, weight, input_precision="ieee") - near[None, :]
        total += tl.where((start + within < end)[:, None], tl.exp2(tl.minimum(above, MOST)), 0.0)
    where = (head * parts + part) * askers + member
    tl.store(tops + where, near, mask=member < askers)
    tl.store(totals + where, tl.sum(total, 0), mask=member < askers)


@triton.jit(do_not_specialize=["askers", "parts", "blocks"])
def _whole(
    tops, totals, wholes, wanted, idle, hits, askers, parts, blocks,
    ASKERS: tl.constexpr, PARTS: tl.constexpr, BINS: tl.constexpr, NOTHING: tl.constexpr,
):  # fmt: skip
    """The base-2 logarithm of each query's sum over all parts; and `choose`'s counts begin at nothing."""
    head = tl.program_id(0)
    for block in range(tl.program_id(1), blocks, tl.num_programs(1)):
        unit = block * tl.num_programs(0) + head
        tl.store(wanted + unit * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int32))
        tl.store(idle + unit * BINS + tl.arange(0, BINS), tl.zeros([BINS], tl.int32))
        tl.store(hits + 2 * unit + tl.arange(0, 2), tl.zeros([2], tl.int32))
    part, member = tl.arange(0, PARTS), tl.program_id(1) * ASKERS + tl.arange(0, ASKERS)
    there = (part < parts)[:, None] & (member < askers)[None, :]
    where = (head * parts + part)[:, None] * askers + member[None, :]
    top = tl.load(tops + where, mask=there, other=NOTHING)
    highest = tl.max(top, 0)
    total = tl.sum(tl.load(totals + where, mask=there, other=0.0) * tl.exp2(top - highest[None, :]), 0)
    total = tl.where(total > 0, total, 1.0)  # of heads that did not look
    tl.store(wholes + head * askers + member, highest + tl.log2(total), mask=member < askers)


@triton.jit(do_not_specialize=["queries", "blocks", "slots_in_all", "first", "parts"])
def _best(
    slots, starts, lengths, cap, which, rows, weights, wholes, place_of, scores, marks, queries, blocks, slots_in_all,
    first, parts, GROUP: tl.constexpr, PADDED: tl.constexpr, R: tl.constexpr, PAD: tl.constexpr, WORDS: tl.constexpr,
    ROOM: tl.constexpr, TOKENS: tl.constexpr, QUERIES: tl.constexpr, RUN: tl.constexpr, NOTHING: tl.constexpr,
    N0: tl.constexpr, B0: tl.constexpr, N1: tl.constexpr, B1: tl.constexpr, N2: tl.constexpr, B2: tl.constexpr,
    WORD: tl.constexpr, MARKED: tl.constexpr,
):  # fmt: skip
    """Of the same parts' runs: the most that a query's group looks at one of its tokens, of the queries that look
    together; -1 of those that are MARKED."""
    head, part, n_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    length = tl.load(lengths)
    if tl.load(cap + first + tl.load(which + head)) >= length:
        return
    tokens = length - 1
    begin, end = span(tokens, part, parts, TOKENS)
    slots += tl.load(starts)
    way, within, run = tl.arange(0, PAD), tl.arange(0, TOKENS), tl.arange(0, TOKENS // RUN)
    column = tl.arange(0, QUERIES * PADDED)
    word, shift, bits = _fields(way, N0, B0, N1, B1, N2, B2, WORD)
    table = rows + head.to(tl.int64) * slots_in_all * WORDS
    weights += head.to(tl.int64) * blocks * queries * GROUP * R
    wholes += head * blocks * queries * GROUP
    marks += head.to(tl.int64) * tokens
    runs = tokens // RUN
    packed = _packed(table, slots, begin + within, end, WORDS, ROOM)
    mark = tl.load(marks + begin // RUN + run, mask=(begin // RUN + run < runs) & MARKED, other=0)
    for start in range(begin, end, TOKENS):
        code, held = _codes(packed, word, shift, bits, weights.dtype.element_ty), mark
        packed = _packed(table, slots, start + TOKENS + within, end, WORDS, ROOM)  # is on its way meanwhile
        number = start // RUN + run
        following = number + TOKENS // RUN
        mark = tl.load(marks + following, mask=(following < runs) & MARKED, other=0)
        for block in range(blocks):
            begins = tl.load(place_of + block)
            there = (tl.load(lengths + block) > 0) & (begins >= 0)
            best = tl.zeros([TOKENS], tl.float32)
            for some in range(0, tl.where(there, queries, 0), QUERIES):
                query, member = some + column // PADDED, column % PADDED
                real = (query < queries) & (member < GROUP)
                asker = (block * queries + query) * GROUP + member
                theirs = weights + asker[None, :] * R + way[:, None]
                weight = tl.load(theirs, mask=real[None, :] & (way < R)[:, None], other=0.0)
                whole = tl.load(wholes + asker, mask=real, other=-NOTHING)
                logit = tl.dot(code, weight, input_precision="ieee") - whole[None, :]
                each = tl.reshape(tl.exp2(tl.minimum(logit, 0.0)), [TOKENS, QUERIES, PADDED])
                best = tl.maximum(best, tl.max(tl.sum(each, 2), 1) * (1.0 / GROUP))
            most = tl.max(tl.reshape(best, [TOKENS // RUN, RUN]), 1)
            mine = scores + begins.to(tl.int64) * n_heads + head.to(tl.int64) * length
            tl.store(mine + number, tl.where(held > 0, -1.0, most), mask=(number < runs) & there)


@triton.jit(do_not_specialize=["n_heads", "first", "sink", "window"])
def _count(
    lengths, cap, which, place_of, scores, wanted, n_heads, first, sink, window,
    RUN: tl.constexpr, BINS: tl.constexpr, FINE: tl.constexpr, LEAST: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """How many of a unit's runs that may come in have which bin."""
    unit, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    block, head = unit // n_heads, unit % n_heads
    length, begins = tl.load(lengths + block), tl.load(place_of + block)
    if (tl.load(cap + first + tl.load(which + head)) >= length) | (begins < 0):
        return
    low, high = sink // RUN, (length - window) // RUN
    begin, end = span(high, split, splits, TILE)
    scores += begins.to(tl.int64) * n_heads + head.to(tl.int64) * length
    counted = tl.zeros([BINS], tl.int32)
    for start in range(begin, end, TILE):
        run = start + tl.arange(0, TILE)
        inside = (run >= low) & (run < end)
        score = tl.load(scores + run, mask=inside, other=-1.0)
        counted += tl.histogram(score_bin(score, BINS, FINE, LEAST), BINS, mask=score >= 0)
    counts = wanted + unit * BINS + tl.arange(0, BINS)
    tl.atomic_add(counts, counted, mask=counted > 0, sem="relaxed")


@triton.jit(do_not_specialize=["first", "sink", "window"])
def _mark(
    lengths, cap, which, page_start, page_list, position, marks, first, sink, window,
    RUN: tl.constexpr, P: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A head's selected runs."""
    head, piece, pieces = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    number, length = first + tl.load(which + head), tl.load(lengths)
    rows, start = tl.load(cap + number), tl.load(page_start + number)
    if rows >= length:
        return
    marks += head.to(tl.int64) * (length - 1)
    begin, end = span((rows - sink - window - RUN + 1) // RUN, piece, pieces, TILE)
    for opening in range(begin, end, TILE):
        place = opening + tl.arange(0, TILE)
        here = place < end
        row = place_row(page_list, start, place, here, sink, RUN, P)
        run = tl.load(position + row, mask=here, other=0) // RUN
        tl.store(marks + run, tl.full([TILE], 1, tl.int8), mask=here)


def ask(
    q: torch.Tensor, layer: LayerIndex, slots: torch.Tensor, starts: torch.Tensor, step: StepTables, length: int,
    scale: float, sink: int, window: int, work: Workspace, hot: HotPool | None = None,
) -> torch.Tensor:  # fmt: skip
    """As a step of the lone request that all of the step's are, or none; what each query q [B, n, Hq, D] scores is left
    to the best of the n that look together. It is every head's turn by the step's clock. Returns the first's scores
    [I, U] of the tokens' runs, of full heads alone, where there are no others; not in a graph, which is made for any
    `length`. Of what is selected in `hot` there is no score."""
    heads, directions, words = layer.decode.shape[0], layer.decode.shape[2], layer.rows.shape[2]
    group, (blocks, count) = work.group, q.shape[:2]
    queries = q.flatten(0, 1).unflatten(1, (-1, group)).index_select(1, layer.heads).float()  # [B * n, I, G, D]
    weights = torch.einsum("nigd,idr->ingr", queries, layer.decode) * (scale * 1.4426950408889634)
    # Codes are small numbers: as exact in 16 bits, and weights as good as a matrix unit takes them.
    dtype = torch.float32 if q.dtype == torch.float32 else torch.float16
    most = torch.finfo(torch.float16).max  # beyond it there is nothing to tell apart
    weights = weights.flatten(1, 2).clamp(-most, most).to(dtype).contiguous()  # [I, B * n * G, R]
    askers, padded = blocks * count * group, triton.next_power_of_2(group)
    block = max(1, 16 // padded, min(_TOGETHER // padded, triton.next_power_of_2(count)))
    together = min(_ASKERS, max(16, triton.next_power_of_2(askers)))
    pad = max(16, triton.next_power_of_2(directions))
    tokens = max(16, min(128, 4096 // pad))
    added = max(16, min(tokens, _SUMMANDS // together))
    parts = max(1, min(_PARTS, length // (2 * tokens)))
    tops, totals = layer.decode.new_empty(2, heads, parts, askers)
    wholes = layer.decode.new_empty(heads, askers)
    sizes = dict(
        R=directions, PAD=pad, WORDS=words, ROOM=max(_ROOM, triton.next_power_of_2(words)), WORD=WORD, NOTHING=_NOTHING,
        **flat_fields(layer.fields),
    )  # fmt: skip
    work.plan(step)
    _sums[(heads, parts, triton.cdiv(askers, together))](
        slots, starts, step.length, step.cap, layer.which, layer.rows, weights, tops, totals, askers,
        layer.rows.shape[1], layer.first, parts, ASKERS=together, MOST=_MOST, TOKENS=added,
        num_warps=8 if together > 64 else 4, **sizes,
    )  # fmt: skip
    _whole[(heads, triton.cdiv(askers, _TOGETHER))](
        tops, totals, wholes, work.wanted, work.idle, work.hits, askers, parts, blocks, ASKERS=_TOGETHER, PARTS=_PARTS,
        BINS=BINS, NOTHING=_NOTHING,
    )  # fmt: skip
    if hot is not None:
        work.marks[: heads * length].zero_()
        _mark[(heads, _MARKERS)](
            step.length, step.cap, layer.which, step.page_start, step.page_list, hot.position, work.marks, layer.first,
            sink, window, RUN=layer.run, P=hot.page_size, TILE=256, num_warps=4,
        )  # fmt: skip
    _best[(heads, parts)](
        slots, starts, step.length, step.cap, layer.which, layer.rows, weights, wholes, work.place, work.scores,
        work.marks, count, blocks, layer.rows.shape[1], layer.first, parts, GROUP=group, PADDED=padded, QUERIES=block,
        RUN=layer.run, MARKED=hot is not None, TOKENS=tokens, num_warps=4, num_stages=1,
        **sizes,
    )  # fmt: skip
    units = heads * blocks
    _count[(units, max(1, min(_PARTS, _COUNTERS // units)))](
        step.length, step.cap, layer.which, work.place, work.scores, work.wanted, heads, layer.first, sink, window,
        RUN=layer.run, BINS=BINS, FINE=FINE, LEAST=LEAST, TILE=1024, num_warps=4,
    )  # fmt: skip
    return work.scores[: heads * length].view(heads, length)[:, : (length - 1) // layer.run]
