"""What one decode step reads: buffers at addresses that a captured graph may keep."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.config.settings import Settings
from hetero_sglang.ops.base import DecodeKernel
from hetero_sglang.ops.triton.attend import TritonDecode
from hetero_sglang.ops.triton.slots import copy_slots
from hetero_sglang.ops.triton.store import StepTables
from hetero_sglang.ops.triton.workspace import Workspace


class DecodeStep:
    """Buffers for up to `batch` requests of up to `context` tokens; filled before, read during a step."""

    def __init__(
        self, settings: Settings, tables: DeviceTables, batch: int, context: int, group: int, v_dim: int,
        queries: torch.Tensor | None = None, kernel: Callable[[DecodeStep], DecodeKernel] = TritonDecode,
        work: Workspace | None = None,
    ) -> None:  # fmt: skip
        """`queries` [layers, batch, Hq, D]: where a step sets its queries aside, if anybody reads them; `work`: where
        heads with a key index look for rows."""
        self.work = work
        self.layout, device = settings.layout, tables.device
        self.tables, self.batch, self.context, self.queries = tables, batch, context, queries
        self.group, self.v_dim, self.window = group, v_dim, settings.rule.window
        self.slots = torch.zeros(batch * context, dtype=torch.int32, device=device)
        self.starts = torch.arange(batch, dtype=torch.int32, device=device) * context  # [batch]
        self.inputs = torch.zeros(2, batch, dtype=torch.int32, device=device)  # lengths, request slots
        self.cap = torch.zeros(batch, self.layout.num_compressed, dtype=torch.int32, device=device)
        self.page_start = torch.zeros_like(self.cap)
        self.kernel = kernel(self)

    def fill(self, requests: list[int], lengths: list[int], width: int, req_to_token: torch.Tensor) -> None:
        """Request slots and lengths of a step padded to `width`; their token slots are copied, nothing waits."""
        self.kernel.prepare(width)
        packed = torch.zeros(2, width, dtype=torch.int32)
        packed[0, : len(lengths)] = torch.tensor(lengths, dtype=torch.int32)
        packed[1, : len(requests)] = torch.tensor(requests, dtype=torch.int32)
        if self.inputs.is_cuda:
            packed = packed.pin_memory()
        self.inputs[:, :width].copy_(packed, non_blocking=True)
        longest = max(lengths, default=0)
        copy_slots(req_to_token, self.inputs[1, :width], self.inputs[0, :width], self.starts, longest, self.slots)

    def tables_of(self, width: int) -> StepTables:
        """What the step reads of its first `width` requests."""
        return StepTables(self.inputs[0, :width], self.cap[:width], self.page_start[:width], self.tables.page_list)

    def plan(self, width: int) -> StepTables:
        """Recorded in the graph: the requests' caps and page lists, and every layer's work cut into equal items."""
        requests = self.inputs[1, :width]
        torch.index_select(self.tables.cap, 0, requests, out=self.cap[:width])
        torch.index_select(self.tables.page_start, 0, requests, out=self.page_start[:width])
        step = self.tables_of(width)
        self.kernel.plan(step)
        if self.work is not None:
            self.work.plan(step.length)
        return step
