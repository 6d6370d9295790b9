"""What one decode step reads: buffers at addresses that a captured graph may keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.config.settings import Settings
from hetero_sglang.ops.base import DecodeKernel, StepTables

LENGTH, REQUEST, PROMPT, UNITS, ROOM, CLOCK = range(6)  # rows of `inputs`


class DecodeStep:
    """Buffers for up to `batch` requests of up to `context` tokens; filled before, read during a step.

    `inputs` [6, batch] int32: tokens, request slot and prompt of each request; how many units of a policy's index it
    has beyond those that its length gives, and the rows there is room for; and the step's clock, the same for all."""

    def __init__(
        self, ops: Any, settings: Settings, tables: DeviceTables, batch: int, context: int, group: int, v_dim: int,
        dtype: torch.dtype, kernel: Callable[[DecodeStep], DecodeKernel] | None = None, work: Any = None,
        fixed: bool = False, of: DecodeStep | None = None,
    ) -> None:  # fmt: skip
        """`ops`: the operations' module; `dtype`: of queries; `work`: the module's Workspace, where heads look for
        rows; `fixed`: for graphs; `of`: the step whose requests have several tokens each in this one."""
        self.ops, self.work = ops, work
        self.layout, device = settings.layout, tables.device
        self.tables, self.batch, self.context = tables, batch, context
        self.group, self.v_dim, self.dtype = group, v_dim, dtype
        self.sink, self.ring = settings.rule.sink, settings.rule.ring
        self.runs = settings.runs
        if of is None:
            self.slots = torch.zeros(batch * context, dtype=torch.int32, device=device)
            self.starts = torch.arange(batch, dtype=torch.int32, device=device) * context  # [batch]
        else:
            self.slots, self.starts = of.slots, of.starts.repeat_interleave(batch // of.batch)
        self.inputs = torch.zeros(6, batch, dtype=torch.int32, device=device)
        self.cap = torch.zeros(batch, self.layout.num_compressed, dtype=torch.int32, device=device)
        self.page_start = torch.zeros_like(self.cap)
        self.index_start = torch.zeros_like(self.cap)
        self.fixed, self.longest = fixed, context  # tokens that shapes must have room for
        self.kernel = (kernel or ops.AttendStep)(self)

    def fill(self, inputs: Sequence[Sequence[int]], width: int, req_to_token: torch.Tensor) -> None:
        """Rows of `inputs`, an entry a request, of a step padded to `width`; token slots are copied, nothing waits."""
        self.kernel.prepare(width)
        packed = torch.zeros(6, width, dtype=torch.int32)
        packed[:, : len(inputs[LENGTH])] = torch.tensor(inputs, dtype=torch.int32)
        if self.inputs.is_cuda:
            packed = packed.pin_memory()
        self.inputs[:, :width].copy_(packed, non_blocking=True)
        longest = max(inputs[LENGTH], default=0)
        self.longest = self.context if self.fixed else longest
        lengths, requests = self.inputs[LENGTH, :width], self.inputs[REQUEST, :width]
        self.ops.copy_slots(req_to_token, requests, lengths, self.starts, longest, self.slots)

    def tables_of(self, width: int) -> StepTables:
        """What the step reads of its first `width` requests."""
        lengths, requests, clock = self.inputs[LENGTH, :width], self.inputs[REQUEST, :width], self.inputs[CLOCK, :1]
        tables, cap, start = self.tables, self.cap[:width], self.page_start[:width]
        return StepTables(lengths, cap, start, tables.page_list, clock, requests, tables.came, tables.told)

    def plan(self, width: int) -> StepTables:
        """Recorded in the graph: the requests' caps and page lists, and every layer's work cut into equal items."""
        requests = self.inputs[REQUEST, :width]
        torch.index_select(self.tables.cap, 0, requests, out=self.cap[:width])
        torch.index_select(self.tables.page_start, 0, requests, out=self.page_start[:width])
        if self.tables.indexed:
            torch.index_select(self.tables.index_start, 0, requests, out=self.index_start[:width])
        return self._planned(self.tables_of(width))

    def follow(self, first: StepTables, each: int) -> StepTables:
        """As `plan`, for `each` tokens of every request of `first`, the tables of the step that this is `of`."""
        tables = (first.length, first.cap, first.page_start, first.request)
        length, cap, start, request = (table.repeat_interleave(each, 0) for table in tables)
        return self._planned(replace(first, length=length, cap=cap, page_start=start, request=request))

    def _planned(self, step: StepTables) -> StepTables:
        self.kernel.plan(step)
        if self.work is not None:
            self.work.plan(step)
        return step
