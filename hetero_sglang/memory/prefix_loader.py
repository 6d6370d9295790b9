"""Prefix rows of the compressed heads on their way back to the device, one layer ahead of the layer that needs them."""

from __future__ import annotations

import torch

from hetero_sglang.memory.host_store import HostStore
from hetero_sglang.memory.lanes import Lane, Mark, mark

_SHORT_RUN = 16  # rows; below that on average, one gather and one copy beat a copy per run


class PrefixLoader:
    """Two layer-sized buffers and a copy lane; owned by the engine of a device."""

    def __init__(self, host: HostStore, device: torch.device) -> None:
        self.host = host
        self.device = device
        self.lane = Lane(device)
        self.layers = [index for index, heads in enumerate(host.heads) if heads]
        self.slots = torch.empty(0, dtype=torch.int64)
        self.runs: list[tuple[int, int, int]] = []
        self.after = mark(device)
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._arrived: dict[int, Mark] = {}
        self._free: list[Mark] = []

    def begin(self, slots: torch.Tensor, after: Mark) -> None:
        """A forward pass needs these token slots [n] (CPU int64); their rows are in the host store `after` that."""
        self.slots, self.runs = slots, slot_runs(slots)
        self.after = after
        self._arrived.clear()
        if not slots.numel() or not self.layers:
            return
        host, count = self.host, slots.numel()
        widest = max(host.heads)
        self._buffers = [
            (
                torch.empty(count, widest, host.head_dim, dtype=host.dtype, device=self.device),
                torch.empty(count, widest, host.v_head_dim, dtype=host.dtype, device=self.device),
            )
            for _ in range(2)
        ]
        self._free = [mark(self.device) for _ in range(2)]
        self.lane.follow(after)
        self._bring(0)

    def take(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K [n, C, D] and V [n, C, Dv] of a layer, valid until `done`; the next layer's rows start moving."""
        place = self.layers.index(layer)
        self._arrived.pop(place).hold(self.device)
        if place + 1 < len(self.layers):
            self._bring(place + 1)
        return self._views(place)

    def done(self, layer: int) -> None:
        """The layer's rows were read by what is enqueued so far."""
        self._free[self.layers.index(layer) % 2] = mark(self.device)

    def end(self) -> None:
        """Give the buffers back once the last layer is through."""
        for buffers in self._buffers:
            self.lane.keep(*buffers)
        self._buffers = []

    def _views(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        heads, count = self.host.heads[self.layers[place]], self.slots.numel()
        k, v = self._buffers[place % 2]
        return (
            k.view(-1)[: count * heads * self.host.head_dim].view(count, heads, -1),
            v.view(-1)[: count * heads * self.host.v_head_dim].view(count, heads, -1),
        )

    def _bring(self, place: int) -> None:
        layer = self.layers[place]
        self.lane.follow(self._free[place % 2])
        with self.lane:
            for store, out in zip((self.host.k[layer], self.host.v[layer]), self._views(place), strict=True):
                self._copy(store, out)
        self._arrived[place] = self.lane.mark()

    def _copy(self, store: torch.Tensor, out: torch.Tensor) -> None:
        if len(self.runs) * _SHORT_RUN > self.slots.numel():
            self.after.wait()  # the host itself reads here
            gathered = torch.empty(out.shape, dtype=out.dtype, pin_memory=self.device.type == "cuda")
            torch.index_select(store, 0, self.slots, out=gathered)
            out.copy_(gathered, non_blocking=True)
            return
        for start, stop, at in self.runs:
            out[at : at + stop - start].copy_(store[start:stop], non_blocking=True)


def slot_runs(slots: torch.Tensor) -> list[tuple[int, int, int]]:
    """Consecutive stretches of `slots` [n]: (first slot, one past the last, place in the list)."""
    if not slots.numel():
        return []
    breaks = (slots[1:] - slots[:-1] != 1).nonzero()[:, 0] + 1
    starts = [0, *breaks.tolist()]
    stops = [*starts[1:], slots.numel()]
    return [(int(slots[a]), int(slots[a]) + b - a, a) for a, b in zip(starts, stops, strict=True)]
