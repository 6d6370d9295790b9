"""How a decode step's attention is cut into items of equal size, on the device, for every layer at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class DecodeShape:
    """Launch parameters of the decode kernel; `python -m benchmarks.kernels --sweep` measures others."""

    block: int = 32  # tokens a program reads at a time
    warps: int = 4
    stages: int = 3
    items_per_processor: int = 4


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


class DecodeBuffers:
    """Item tables and partial results of a decode step; row b * H + j is head j of request b, resident heads first.

    `first_item` [layers, B * H + 1] int32: a row's first item, then the number of items; `partial` [items, G, Dv]
    and `weight` [items, G] float32: an item's output and the base-2 logarithm of its sum of exponents.
    """

    def __init__(
        self, counts: list[tuple[int, int, int]], batch: int, group: int, v_head_dim: int, device: torch.device,
        shape: DecodeShape = DecodeShape(),  # noqa: B008 - frozen
    ) -> None:  # fmt: skip
        """`counts`: (R, C, compressed heads in earlier layers) of each layer."""
        self.shape, self.layers, self.kv_heads = shape, len(counts), sum(counts[0][:2])
        self.processors = 4
        if device.type == "cuda":
            self.processors = torch.cuda.get_device_properties(device).multi_processor_count
        items = self.items(batch)
        self._first_item = torch.zeros(self.layers * (batch * self.kv_heads + 1), dtype=torch.int32, device=device)
        self.partial = torch.empty(items, group, v_head_dim, dtype=torch.float32, device=device)
        self.weight = torch.empty(items, group, dtype=torch.float32, device=device)
        self._counts = torch.tensor(counts, dtype=torch.int32, device=device)  # [layers, 3]
        self.rows = 0

    def items(self, batch: int) -> int:
        """Programs of a step: enough to fill the device, and twice its rows at least."""
        return max(self.shape.items_per_processor * self.processors, 2 * batch * self.kv_heads)

    @property
    def first_item(self) -> torch.Tensor:
        return self._first_item[: self.layers * (self.rows + 1)].view(self.layers, self.rows + 1)

    def plan(self, length: torch.Tensor, cap: torch.Tensor) -> None:
        """Cut this step's rows: length [B] int32, cap [B, Hc] int32."""
        self.rows = length.numel() * self.kv_heads
        rows = triton.next_power_of_2(self.rows)
        _plan_work[(self.layers,)](
            length, cap, self._counts, self._first_item, self.rows, self.items(length.numel()),
            cap.shape[1], HEADS=self.kv_heads, BLOCK=self.shape.block, ROWS=rows, num_warps=8 if rows > 512 else 1,
        )  # fmt: skip
