"""How a decode step's attention is cut into items of equal size, on the device, for every layer at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from hetero_sglang.config.layout import LayerLayout
from hetero_sglang.ops.triton.early import overlaps
from hetero_sglang.ops.triton.store import ring_row

_COMPARED = 1 << 16  # rows with items, by a program: registers have room
FIELDS = 8  # words of an item's description: it fits one sector of memory


@dataclass(frozen=True)
class DecodeShape:
    """Launch parameters of the decode kernel; `python -m benchmarks.kernels --sweep` measures others."""

    block: int = 32  # tokens a program reads at a time
    warps: int = 4
    stages: int = 4
    items_per_processor: int = 4
    room: int = 65536  # registers of a processor that they may have; the others are for kernels beside

    def registers(self, row: int) -> int | None:
        """The most a thread may have, so that a processor runs its items at once; None for rows of too many bytes."""
        return self.room // (32 * self.warps * self.items_per_processor) if row <= 256 else None


BESIDE = DecodeShape(block=64, items_per_processor=3, room=49152)  # where rows come while heads attend


@triton.jit(do_not_specialize=["rows", "items", "caps_per_request"])
def _plan_work(
    length, cap, counts, first_item, rows, items, caps_per_request,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(0)
    resident = tl.load(counts + layer * 3)
    first = tl.load(counts + layer * 3 + 2)
    row = tl.arange(0, ROWS)
    here = row < rows
    request, head = row // HEADS, row % HEADS
    tokens = tl.load(length + request, mask=here, other=0)
    kept = tl.load(cap + request * caps_per_request + first + head - resident, mask=here & (head >= resident), other=0)
    tokens = tl.where(head < resident, tokens, tl.minimum(tokens, kept))
    total = tl.sum(tokens)
    size = tl.cdiv(total, items - rows)
    size = tl.maximum(tl.cdiv(size, BLOCK), 1) * BLOCK
    pieces = tl.cdiv(tokens, size)
    before = tl.cumsum(pieces) - pieces
    tl.store(first_item + layer * (rows + 1) + row, before, mask=here)
    tl.store(first_item + layer * (rows + 1) + rows, tl.sum(pieces))


@triton.jit
def _passed(rows, length, ring, run):
    """Of a full head, ring rows that base.passed counts: the first, how many from there on, and how many more from the
    ring's begin on, as 64 a + 8 b + c."""
    oldest = length - ring
    many = ring - (length - (length - ring + run - 1) // run * run)
    first = rows - ring + (oldest - rows + ring) % ring
    here = tl.minimum(many, rows - first)
    return first * 64 + here * 8 + many - here


@triton.jit(do_not_specialize=["rows", "items", "caps_per_request", "sink", "ring"])
def _describe(
    length, cap, page_start, starts, counts, runs, heads, first_item, described, rows, items, caps_per_request, sink,
    ring,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr, FIELDS: tl.constexpr,
    RUNS: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(0)
    item = tl.program_id(1) * ITEMS + tl.arange(0, ITEMS)
    firsts = first_item + layer * (rows + 1)
    every = tl.arange(0, ROWS)
    begins = tl.load(firsts + every, mask=every < rows, other=2147483647)
    here = item < tl.load(firsts + rows)
    row = tl.sum((begins[None, :] <= item[:, None]).to(tl.int32), 1) - 1
    row = tl.where(here, row, 0)
    opening = tl.load(firsts + row)
    pieces = tl.maximum(tl.load(firsts + row + 1) - opening, 1)
    request, place = row // HEADS, row % HEADS
    resident, first = tl.load(counts + layer * 3), tl.load(counts + layer * 3 + 2)
    number = request * caps_per_request + first + place - resident
    compressed = here & (place >= resident)
    total_tokens = tl.load(length + request)
    kept = tl.load(cap + number, mask=compressed, other=2147483647)
    fresh = ring_row(total_tokens - 1, kept, sink, ring)
    tokens = tl.minimum(kept, total_tokens)
    listed = tl.load(page_start + number, mask=compressed, other=0)
    listed = tl.where(compressed, listed, tl.load(starts + request))
    size = tl.cdiv(tl.cdiv(tokens, pieces), BLOCK) * BLOCK  # a row's items are alike
    begin = (item - opening) * size
    end = tl.minimum(begin + size, tokens)
    out = described + (layer * items + item) * FIELDS
    inside = item < items
    tl.store(out, tl.where(here, row, -1), mask=inside)
    tl.store(out + 1, tl.load(heads + layer * HEADS + place), mask=inside)
    tl.store(out + 2, listed, mask=inside)
    tl.store(out + 3, begin, mask=inside)
    tl.store(out + 4, end, mask=inside)
    tl.store(out + 5, (pieces == 1).to(tl.int32), mask=inside)
    tl.store(out + 6, tl.where((begin <= fresh) & (fresh < end), fresh, -1), mask=inside)
    if RUNS:
        dead = _passed(kept, total_tokens, ring, tl.load(runs + layer))
        tl.store(out + 7, tl.where(compressed & (kept < total_tokens), dead, 0), mask=inside)


class DecodeBuffers:
    """Item tables and partial results of a decode step; row b * H + j is head j of request b, resident heads first.

    `first_item` [layers, B * H + 1] int32: a row's first item, then the number of items. `described`
    [layers, items, FIELDS] int32: an item's row (-1: none), KV head, place of its list, the tokens [begin, end) of it,
    whether it is its row's only one, which of its tokens is this step's (-1: none), and which do not count (`_passed`).
    `partial` [items, G, Dv] and
    `weight` [items, G] float32: an item's output and the base-2 logarithm of its sum of exponents."""

    def __init__(
        self, layers: Sequence[LayerLayout], batch: int, group: int, v_head_dim: int, sink: int, ring: int,
        runs: Sequence[int], device: torch.device,
        shape: DecodeShape = DecodeShape(),  # noqa: B008 - frozen
    ) -> None:  # fmt: skip
        counts = [(len(x.resident), len(x.compressed), x.first) for x in layers]
        self.shape, self.sink, self.ring, self.runs = shape, sink, ring, runs
        self.layers, self.kv_heads = len(counts), sum(counts[0][:2])
        self.processors = 4
        if device.type == "cuda":
            self.processors = torch.cuda.get_device_properties(device).multi_processor_count
        items = self.items(batch)
        self._first_item = torch.zeros(self.layers * (batch * self.kv_heads + 1), dtype=torch.int32, device=device)
        self.partial = torch.empty(items, group, v_head_dim, dtype=torch.float32, device=device)
        self.weight = torch.empty(items, group, dtype=torch.float32, device=device)
        self._counts = torch.tensor(counts, dtype=torch.int32, device=device)  # [layers, 3]
        self._runs = torch.tensor(runs, dtype=torch.int32, device=device)  # [layers]
        order = torch.stack([torch.cat((x.resident_index, x.compressed_index)) for x in layers])
        self.heads = order.to(device, torch.int32)  # [layers, H], by place
        self._described = torch.zeros(self.layers * items * FIELDS, dtype=torch.int32, device=device)
        self.pdl = overlaps(device)
        self.rows = self.planned = 0

    def items(self, batch: int) -> int:
        """Programs of a step: enough to fill the device, and twice its rows at least."""
        return max(self.shape.items_per_processor * self.processors, 2 * batch * self.kv_heads)

    @property
    def one_wave(self) -> bool:
        """Whether all of the step's programs run at once: what they read early is then not waited for twice."""
        return self.planned <= self.shape.items_per_processor * self.processors

    @property
    def first_item(self) -> torch.Tensor:
        return self._first_item[: self.layers * (self.rows + 1)].view(self.layers, self.rows + 1)

    @property
    def described(self) -> torch.Tensor:
        return self._described[: self.layers * self.planned * FIELDS].view(self.layers, self.planned, FIELDS)

    def plan(self, length: torch.Tensor, cap: torch.Tensor, page_start: torch.Tensor, starts: torch.Tensor) -> None:
        """Cut this step's rows: length [B], cap and page_start [B, Hc], starts [>= B] of slot lists, all int32."""
        self.rows, self.planned = length.numel() * self.kv_heads, self.items(length.numel())
        rows = triton.next_power_of_2(self.rows)
        _plan_work[(self.layers,)](
            length, cap, self._counts, self._first_item, self.rows, self.planned,
            cap.shape[1], HEADS=self.kv_heads, BLOCK=self.shape.block, ROWS=rows, num_warps=8 if rows > 512 else 1,
        )  # fmt: skip
        each = max(1, min(32, _COMPARED // rows))
        _describe[(self.layers, triton.cdiv(self.planned, each))](
            length, cap, page_start, starts, self._counts, self._runs, self.heads, self._first_item, self._described,
            self.rows, self.planned, cap.shape[1], self.sink, self.ring, HEADS=self.kv_heads, BLOCK=self.shape.block,
            ROWS=rows, ITEMS=each, RUNS=max(self.runs) > 1, FIELDS=FIELDS, num_warps=4,
        )  # fmt: skip
