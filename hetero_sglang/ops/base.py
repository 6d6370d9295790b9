"""What every way of attending in a decode step offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from hetero_sglang.ops.triton.store import LayerBuffers, StepTables


class DecodeKernel(ABC):
    """Attention of one DecodeStep over both device tiers; made with the step, it keeps the step's addresses."""

    def prepare(self, width: int) -> None:  # noqa: B027 - most have nothing to prepare
        """On the host, before a step of `width` requests is run, captured or replayed; waits for nothing."""

    @abstractmethod
    def plan(self, tables: StepTables) -> None:
        """Once per step, recorded in the graph: cut the work of every layer for these lengths and caps."""

    @abstractmethod
    def attend(
        self, layer: int, q: torch.Tensor, buffers: LayerBuffers, tables: StepTables, scale: float,
        ordered: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """q [B, Hq, D] -> [B, Hq, Dv], heads in the model's order, recorded in the graph.

        Resident heads attend to the request's tokens, compressed ones to their first min(cap, length) rows; padding
        (length 0) gives something finite. `ordered`: other kernels than `store` may have written rows just before.
        """
