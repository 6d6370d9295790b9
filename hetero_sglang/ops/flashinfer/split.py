"""FlashInfer's plans, written on the device: how every layer's rows are cut into chunks, for this step's lengths.

FlashInfer's own plan is made on the host and holds for the lengths it saw: a row that grows past its last chunk would
lose tokens, one that shrinks would read past its end. Here the cut is made anew in every step, within the graph.
Nothing is copied for it: a row's list stays where it is, and its length is told by `last`, see `_split`."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from hetero_sglang.ops.base import StepTables
from hetero_sglang.ops.flashinfer.plan_place import PlanPlace

FIELDS = 13  # of a row of `places`: page size, heads, first, indptr, last, and a PlanPlace
UNIT = 16  # a chunk is a multiple of it
LEAST = 8  # units


@dataclass(frozen=True)
class SplitTables:
    """The plans of one batch width: `places` [n, FIELDS] int32, `words` [n, size] int32; see `place`."""

    places: torch.Tensor
    words: torch.Tensor
    most: int  # rows of the largest plan


def place(page: int, heads: int, first: int, indptr: int, last: int, where: PlanPlace) -> list[int]:
    """A row of `SplitTables.places`. `heads`: compressed heads of the layer, or 0 for a plan of resident heads.

    Rows are request by request: (request, head), or one per request. indptr [rows + 1] and last [rows] are words."""
    return [page, heads, first, indptr, last, *where.row()]


@triton.jit
def _start(row, rows, length, cap, page_start, heads, first, caps_per_request, end):
    """Where compressed row's page list starts, and its tokens. An empty row gets a start of its own past the lists."""
    here = row < rows
    request = row // heads
    number = request * caps_per_request + first + row % heads
    tokens = tl.minimum(tl.load(length + request, mask=here, other=0), tl.load(cap + number, mask=here, other=0))
    start = tl.load(page_start + number, mask=here, other=0)
    start = tl.where(tokens > 0, start, end + 1 + row)
    return tokens, tl.where(row == rows, end, start)


@triton.jit(do_not_specialize=["batch", "context", "end", "caps_per_request", "size"])
def _split(
    length, cap, page_start, places, words, mask, batch, context, end, caps_per_request, size,
    FIELDS: tl.constexpr, UNIT: tl.constexpr, LEAST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    mine = places + tl.program_id(0) * FIELDS
    page, heads, first = tl.load(mine), tl.load(mine + 1), tl.load(mine + 2)
    plan = words + tl.program_id(0).to(tl.int64) * size
    valid = mask + tl.program_id(0).to(tl.int64) * size * 4 + tl.load(mine + 12)
    rows = batch * tl.maximum(heads, 1)
    row = tl.arange(0, ROWS)
    here = row < rows
    if heads == 0:
        tokens = tl.load(length + row, mask=here, other=0)
        start = row * context
        following = start + context
    else:
        tokens, start = _start(row, rows, length, cap, page_start, heads, first, caps_per_request, end)
        later, following = _start(row + 1, rows, length, cap, page_start, heads, first, caps_per_request, end)
    # FlashInfer takes (indptr[i + 1] - indptr[i] - 1) * page + last[i], modulo 2^32, for the length of row i: with
    # `last` made to fit, lists may lie anywhere, as long as no two neighbours start at the same place.
    indptr = plan + tl.load(mine + 3)
    tl.store(indptr + row, start, mask=here)
    tl.store(indptr + row + 1, following, mask=row == rows - 1)
    tl.store(plan + tl.load(mine + 4) + row, tokens - (following - start - 1) * page, mask=here)
    items = tl.load(mine + 5)
    high = tl.maximum(tl.cdiv(tl.max(tokens), UNIT), LEAST)
    low = high * 0 + LEAST
    for _ in range(20):  # the smallest chunk that makes no more items than there is room for
        middle = (low + high) // 2
        made = tl.sum(tl.where(here, tl.maximum(tl.cdiv(tokens, middle * UNIT), 1), 0))
        low = tl.where(made > items, tl.minimum(middle + 1, high), low)
        high = tl.where(made > items, high, middle)
    chunk = high * UNIT
    pieces = tl.where(here, tl.maximum(tl.cdiv(tokens, chunk), 1), 0)
    before = tl.cumsum(pieces) - pieces
    total = tl.sum(pieces)
    tl.store(plan + tl.load(mine + 11), chunk)
    outputs, merged = plan + tl.load(mine + 9), plan + tl.load(mine + 10)
    tl.store(outputs + row, before, mask=here)
    tl.store(merged + row, before, mask=here)
    tl.store(outputs + rows, total)
    tl.store(merged + rows, total)
    request, number = plan + tl.load(mine + 6), plan + tl.load(mine + 8)
    for piece in range(0, tl.max(pieces)):
        more = here & (piece < pieces)
        tl.store(request + before + piece, row, mask=more)
        tl.store(number + before + piece, row * 0 + piece, mask=more)
    for begin in range(0, items, BLOCK):
        item = begin + tl.arange(0, BLOCK)
        tl.store(valid + item, (item < total).to(tl.uint8), mask=item < items)


def split(step: StepTables, into: SplitTables, context: int) -> None:
    """Fill in every plan of this width for the step's lengths. `context`: slots between two requests' lists."""
    rows = triton.next_power_of_2(into.most)
    _split[(into.places.shape[0],)](
        step.length, step.cap, step.page_start, into.places, into.words, into.words.view(torch.uint8),
        step.length.numel(), context, step.page_list.numel(), step.cap.shape[1], into.words.shape[1],
        FIELDS=FIELDS, UNIT=UNIT, LEAST=LEAST, ROWS=rows, BLOCK=256, num_warps=8 if rows > 512 else 1,
    )  # fmt: skip
