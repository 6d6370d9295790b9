"""Steps whose last layers run after others have begun: of tokens that left a pass early, and go on with a later one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import proxy

import torch

from hetero_sglang.ops.base import StepTables
from hetero_sglang.ops.step import DecodeStep

if TYPE_CHECKING:
    from hetero_sglang.engine.engine import Engine

Begun = tuple[Sequence[int], int]  # lengths of a step's requests, and its clock
Turns = list[tuple[DecodeStep, StepTables]]


class Late:
    """Owns these steps' buffers, which are filled anew for every pass that they go on with."""

    def __init__(self, engine: Engine, fixed: bool = False) -> None:
        """`fixed`: for graphs."""
        self.engine: Engine = proxy(engine)  # whose it is: a circle would keep its stores until a collection
        self.fixed = fixed
        self.steps: list[DecodeStep] = []  # all read the token slots of the first
        self.begun: Turns = []

    def begin(self, requests: Sequence[int], late: Sequence[Begun], req_to_token: torch.Tensor) -> Turns:
        """Before layers run for steps of these request slots, oldest first: each with its tables."""
        self.grow(len(late), len(requests), max((max(lengths) for lengths, _ in late), default=1))
        self.fill(requests, late, len(requests), req_to_token)
        return self.plan(len(late), len(requests))

    def fill(
        self, requests: Sequence[int], late: Sequence[Begun | None], width: int, req_to_token: torch.Tensor
    ) -> None:
        """What they read, padded to `width` requests; None: a step of nobody."""
        engine, self.begun = self.engine, []
        known = engine.known(requests)
        for step, each in zip(self.steps, late, strict=False):
            lengths, clock = each or ((), 0)
            engine.fill(step, known if each else (), lengths, clock, width, req_to_token)
            if engine.finder:
                engine.finder.prepare(step)
            if each:
                self.begun.append((step, step.tables_of(width)))

    def plan(self, count: int, width: int) -> Turns:
        """Recorded in a graph: as of a step."""
        return [(step, step.plan(width)) for step in self.steps[:count]]

    def grow(self, count: int, width: int, longest: int) -> None:
        """Room for so many steps of `width` requests with as many tokens."""
        first = self.steps[0] if self.steps else None
        if first is None or first.batch < width or first.context < longest:
            batch = max(width, first.batch if first else 0)
            context = min(self.engine.context, max(2 * longest, first.context if first else 0))
            own = self.engine.graph_step or self.engine.eager_step  # whose room is part of what SGLang has measured
            self.steps = [self.engine.make_step(batch, context, self.fixed, beside=own)]
        while len(self.steps) < count:
            first = self.steps[0]
            self.steps.append(self.engine.make_step(first.batch, first.context, self.fixed, first, first))

    def left(self) -> None:
        """They are through, or wait again."""
        self.begun = []

    def through(self) -> None:
        """They have run all layers: their rows may leave for the host store."""
        for step, tables in self.begun:
            self.engine.write_back.owe(step, tables.length.numel())
        self.left()
