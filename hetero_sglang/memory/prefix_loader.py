"""Prefix rows of the compressed heads on their way back to the device, one layer ahead of the layer that needs them."""

from __future__ import annotations

import torch

from hetero_sglang.memory.host_store import HostStore

_SHORT_RUN = 16  # rows; below that on average, one gather and one copy beat a copy per run


class PrefixLoader:
    """Two layer-sized buffers and a copy stream; owned by the engine of a CUDA device."""

    def __init__(self, host: HostStore, device: torch.device) -> None:
        self.host = host
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.slots = torch.empty(0, dtype=torch.int64)
        self.runs: list[tuple[int, int, int]] = []
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._arrived: dict[int, torch.cuda.Event] = {}
        self._free: list[torch.cuda.Event] = []

    def begin(self, slots: torch.Tensor, after: torch.cuda.Event) -> None:
        """A forward pass needs these token slots [n] (CPU int64); their rows are in the host store `after` the event."""
        self.slots, self.runs = slots, slot_runs(slots)
        self._arrived.clear()
        if not slots.numel():
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
        self._free = [torch.cuda.current_stream(self.device).record_event() for _ in range(2)]
        self.stream.wait_event(after)
        self._bring(0)

    def take(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K [n, C, D] and V [n, C, Dv] of a layer, valid until `done`; the next layer's rows start moving."""
        torch.cuda.current_stream(self.device).wait_event(self._arrived[layer])
        if layer + 1 < len(self.host.heads):
            self._bring(layer + 1)
        return self._views(layer)

    def done(self, layer: int) -> None:
        """The layer's rows were read by what is enqueued so far."""
        self._free[layer % 2] = torch.cuda.current_stream(self.device).record_event()

    def end(self) -> None:
        """Give the buffers back once the last layer is through."""
        for buffers in self._buffers:
            for tensor in buffers:
                tensor.record_stream(self.stream)
        self._buffers = []

    def _views(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        heads, count = self.host.heads[layer], self.slots.numel()
        k, v = self._buffers[layer % 2]
        return (
            k.view(-1)[: count * heads * self.host.head_dim].view(count, heads, -1),
            v.view(-1)[: count * heads * self.host.v_head_dim].view(count, heads, -1),
        )

    def _bring(self, layer: int) -> None:
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self._free[layer % 2])
            if self.host.heads[layer]:
                for store, out in zip((self.host.k[layer], self.host.v[layer]), self._views(layer), strict=True):
                    self._copy(store, out)
            self._arrived[layer] = self.stream.record_event()

    def _copy(self, store: torch.Tensor, out: torch.Tensor) -> None:
        if len(self.runs) * _SHORT_RUN > self.slots.numel():
            gathered = torch.empty(out.shape, dtype=out.dtype, pin_memory=True)
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
