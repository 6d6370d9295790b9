"""Steps whose last layers run after others have begun: of tokens that left a pass early, and go on with a later one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hetero_sglang.ops.base import StepTables
from hetero_sglang.ops.step import DecodeStep

if TYPE_CHECKING:
    from hetero_sglang.engine.engine import Engine

Begun = tuple[Sequence[int], int]  # lengths of a step's requests, and its clock


class Late:
    """Owns these steps' buffers, which are filled anew for every pass that they go on with."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.steps: list[DecodeStep] = []  # all read the token slots of the first
        self.begun: list[tuple[DecodeStep, StepTables]] = []

    def begin(
        self, requests: Sequence[int], late: Sequence[Begun], req_to_token: torch.Tensor
    ) -> list[tuple[DecodeStep, StepTables]]:
        """Before layers run for steps of these request slots, oldest first: each with its tables."""
        engine, width = self.engine, len(requests)
        self._grow(len(late), width, max((max(lengths) for lengths, _ in late), default=1))
        self.begun = []
        for step, (lengths, clock) in zip(self.steps, late, strict=False):
            engine.fill(step, requests, lengths, clock, width, req_to_token)
            if engine.finder:
                engine.finder.prepare(step)
            self.begun.append((step, step.plan(width)))
        return list(self.begun)

    def _grow(self, count: int, width: int, longest: int) -> None:
        first = self.steps[0] if self.steps else None
        if first is None or first.batch < width or first.context < longest:
            batch = max(width, first.batch if first else 0)
            context = min(self.engine.context, max(2 * longest, first.context if first else 0))
            self.steps = [self.engine.make_step(batch, context)]
        while len(self.steps) < count:
            first = self.steps[0]
            self.steps.append(self.engine.make_step(first.batch, first.context, of=first))

    def left(self) -> None:
        """They are through, or wait again."""
        self.begun = []

    def through(self) -> None:
        """They have run all layers: their rows may leave for the host store."""
        for step, tables in self.begun:
            self.engine.write_back.owe(step, tables.length.numel())
        self.left()
