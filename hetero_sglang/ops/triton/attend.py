"""Decode attention by our own kernel: resident and compressed heads in one launch, and one to merge."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from hetero_sglang.ops.base import Arrivals, DecodeKernel, Drafts, LayerBuffers, StepTables
from hetero_sglang.ops.triton.decode import BESIDE, DecodeBuffers, DecodeShape, decode_attention

if TYPE_CHECKING:
    from hetero_sglang.ops.step import DecodeStep


class AttendStep(DecodeKernel):
    """Any dtype and head size; the only one that runs in Triton's interpreter."""

    def __init__(self, step: DecodeStep, shape: DecodeShape | None = None) -> None:
        if shape is None:
            shape = DecodeShape()
            if step.work is not None and step.work.aside:
                wide = step.work.arrived_k[0].nbytes > 512  # shared memory has room for two blocks of a program
                shape = replace(BESIDE, block=32) if wide else BESIDE
        layers, device = step.layout.layers, step.tables.device
        self.work = DecodeBuffers(
            layers, step.batch, step.group, step.v_dim, step.sink, step.ring, step.runs, device, shape
        )
        self.slots, self.starts = step.slots, step.starts

    def plan(self, tables: StepTables) -> None:
        self.work.plan(tables.length, tables.cap, tables.page_start, self.starts)

    def attend(
        self, layer: int, q: torch.Tensor, buffers: LayerBuffers, tables: StepTables, scale: float,
        ordered: bool = False, arrivals: Arrivals | None = None, drafts: Drafts | None = None,
    ) -> torch.Tensor:  # fmt: skip
        listed = self.slots, tables.page_list
        return decode_attention(q, buffers, *listed, scale, self.work, layer, ordered, arrivals, drafts)
