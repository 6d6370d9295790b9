"""New rows on their way to the host store, beside the computation: prefill's as they are made, a step's after it."""

from collections.abc import Sequence
from typing import Any

import torch

from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.lanes import Lane, mark
from hetero_sglang.config.layout import LayerLayout
from hetero_sglang.ops.base import HostPlaces, LayerBuffers, StepTables
from hetero_sglang.ops.step import DecodeStep


class WriteBack:
    """Owns the lane of these copies, which keeps their order, and the marks that tell how far it is.

    A step's rows leave while the next step runs, and have arrived before the one after that. So a row that the ring
    is about to overwrite, or that anybody may ask for (older than the window), is in the host store by then."""

    def __init__(self, ops: Any, host: HostStore, hot: HotPool, layers: Sequence[LayerLayout]) -> None:
        self.ops, self.hot, self.device = ops, hot, hot.k.device
        self.lane = Lane(self.device, urgent=False)
        self.places = HostPlaces.of(host.blocks, layers, self.device) if any(host.heads) else None
        self.latest = self.before = mark(self.device)  # of the last two batches of copies
        self._owed: list[tuple[DecodeStep, StepTables]] = []

    def chunk(self, layer: LayerBuffers, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """A layer's rows of a prefill: k [n, H, D], v [n, H, Dv] at `slots` [n]."""
        self.lane.follow(mark(self.device))
        with self.lane:
            self.ops.store(layer, slots, k, v, resident=False)
        self.latest = self.before = self.lane.mark()
        self.lane.keep(k, v, slots)

    def owe(self, step: DecodeStep, width: int) -> None:
        """`step` is about to run for `width` rows of its tables, or has run: what it writes leaves with the next
        `send`."""
        if self.places is not None:
            self._owed.append((step, step.tables_of(width)))

    def withdraw(self, step: DecodeStep) -> None:
        """It has not written all that it was about to: nothing of it leaves yet."""
        self._owed = [each for each in self._owed if each[0] is not step]

    def send(self) -> None:
        """Before the next forward pass, ahead of any change of tables: the last steps' rows leave.

        The forward passes go on once the rows of the step before that one have arrived."""
        self.before = self.latest
        if self._owed:
            assert self.places is not None  # else nothing is owed
            every = [
                self.ops.locate(tables, step.slots, step.starts, step.sink, step.ring, self.hot.page_size)
                for step, tables in self._owed
            ]
            self._owed = []
            self.lane.follow(mark(self.device))
            with self.lane:
                for rows in every:
                    self.ops.write_back(rows, self.hot, self.places)
            self.latest = self.lane.mark()
            for rows in every:
                self.lane.keep(rows.row, rows.slot)
        self.before.hold(self.device)

    def hold(self) -> None:
        """Forward passes go on once everything sent has arrived: for whoever reads it, or gets pages that held it."""
        self.latest.hold(self.device)
