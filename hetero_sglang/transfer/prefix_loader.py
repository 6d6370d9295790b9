"""Prefix rows of the compressed heads on their way back to the device, one layer ahead of the layer that needs them."""

from typing import Any

import torch

from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.host_layout import BLOCK
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.cache.lanes import Lane, Mark, mark, upload
from hetero_sglang.cache.sizes import SPREAD

_SHORT_RUN = 4  # blocks; where runs are shorter on average, a kernel reads row by row


class PrefixLoader:
    """Two layer-sized buffers and a copy lane; owned by the engine of a device."""

    def __init__(self, ops: Any, host: HostStore, device: torch.device, counters: Counters) -> None:
        self.ops, self.host, self.device, self.counters = ops, host, device, counters
        self.lane = Lane(device)
        self.layers = [index for index, heads in enumerate(host.heads) if heads]
        self.slots = torch.empty(0, dtype=torch.int64)  # on the device
        self.runs: list[tuple[int, int, int]] = []  # of blocks; none: rows are gathered
        self.places: tuple[torch.Tensor, torch.Tensor] | None = None  # of each slot: block of the buffer, row in it
        self._buffers: list[torch.Tensor] = []
        self._arrived: dict[int, Mark] = {}
        self._free: list[Mark] = []

    def begin(self, slots: torch.Tensor, after: Mark) -> None:
        """A forward pass needs these token slots [n] (CPU int64); their rows are in the host store `after` that."""
        self.slots, self.runs, self.places = upload(slots, self.device), [], None
        self._arrived.clear()
        if not slots.numel() or not self.layers:
            return
        blocks, which = (slots // BLOCK).unique_consecutive(return_inverse=True)
        rows, runs = blocks.numel() * BLOCK, slot_runs(blocks)
        whole = rows <= SPREAD * slots.numel() and len(runs) * _SHORT_RUN <= blocks.numel()
        if whole and self.device.type == "cuda":  # elsewhere a copy of blocks would be one more copy
            self.runs = runs
            self.places = upload(which, self.device), upload(slots % BLOCK, self.device)
            self.counters.prefix_rows_copied += slots.numel() * len(self.layers)
        else:
            rows = slots.numel()
            self.counters.prefix_rows_read += rows * len(self.layers)
        size = rows * max(self.host.heads) * (self.host.head_dim + self.host.v_head_dim)
        self._buffers = [torch.empty(size, dtype=self.host.dtype, device=self.device) for _ in range(2)]
        self._free = [mark(self.device) for _ in range(2)]
        self.lane.follow(after)
        self._bring(0)

    def take(self, layer: int) -> torch.Tensor:
        """Rows [n, C, D + Dv] of a layer, valid until `done`; the next layer's start moving."""
        place = self.layers.index(layer)
        self._arrived.pop(place).hold(self.device)
        if place + 1 < len(self.layers):
            self._bring(place + 1)
        rows = self._view(place)
        return rows if self.places is None else rows[self.places[0], :, self.places[1]]

    def done(self, layer: int) -> None:
        """The layer's rows were read by what is enqueued so far."""
        self._free[self.layers.index(layer) % 2] = mark(self.device)

    def end(self) -> None:
        """Give the buffers back once the last layer is through."""
        self.lane.keep(self.slots, *self._buffers)
        self._buffers = []

    def _view(self, place: int) -> torch.Tensor:
        """A layer's buffer: blocks [b, C, BLOCK, D + Dv], or gathered rows [n, C, D + Dv]."""
        store = self.host.blocks[self.layers[place]]
        count = sum(stop - start for start, stop, _ in self.runs) or self.slots.numel()
        shape = (count, *(store.shape[1:] if self.runs else (store.shape[1], store.shape[3])))
        size = torch.Size(shape).numel()
        return self._buffers[place % 2][:size].view(shape)

    def _bring(self, place: int) -> None:
        layer, out = self.layers[place], self._view(place)
        self.lane.follow(self._free[place % 2])
        with self.lane:
            for start, stop, at in self.runs:
                out[at : at + stop - start].copy_(self.host.blocks[layer][start:stop], non_blocking=True)
            if not self.runs:
                self.ops.bring(self.host.blocks[layer], self.slots, out)
        self._arrived[place] = self.lane.mark()


def slot_runs(slots: torch.Tensor) -> list[tuple[int, int, int]]:
    """Consecutive stretches of `slots` [n], or of blocks: (first, one past the last, place in the list)."""
    if not slots.numel():
        return []
    breaks = (slots[1:] - slots[:-1] != 1).nonzero()[:, 0] + 1
    starts = [0, *breaks.tolist()]
    stops = [*starts[1:], slots.numel()]
    return [(int(slots[a]), int(slots[a]) + b - a, a) for a, b in zip(starts, stops, strict=True)]
