"""Streams and events by other names, so that code which orders copies runs on the CPU too, where all is in order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch


class Mark:
    """A point in a stream's work."""

    def __init__(self, event: torch.cuda.Event | None) -> None:
        self._event = event

    @property
    def passed(self) -> bool:
        """Whether everything before it is done; never waits."""
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Block the host until this is passed; for steps that were asked to wait, and tests."""
        if self._event is not None:
            self._event.synchronize()

    def hold(self, device: torch.device) -> None:
        """The device's current stream goes on once this is passed."""
        if self._event is not None:
            torch.cuda.current_stream(device).wait_event(self._event)


def mark(device: torch.device) -> Mark:
    """Here, in the device's current stream."""
    return Mark(torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None)


class Lane:
    """A stream of its own: `with lane:` work goes there; each lane has one owner."""

    def __init__(self, device: torch.device, urgent: bool = True) -> None:
        self.device = device
        priority = -1 if urgent else 0  # lower numbers go first
        self._stream = torch.cuda.Stream(device, priority=priority) if device.type == "cuda" else None
        self._context: Any = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def follow(self, point: Mark) -> None:
        """What comes next here starts once `point` is passed."""
        if self._stream is not None and point._event is not None:
            self._stream.wait_event(point._event)

    def mark(self) -> Mark:
        """Here, in this lane."""
        return Mark(self._stream.record_event() if self._stream is not None else None)

    def keep(self, *tensors: torch.Tensor) -> None:
        """Memory of these tensors is not reused before this lane is through with what it has now."""
        if self._stream is not None:
            for tensor in tensors:
                tensor.record_stream(self._stream)

    def __enter__(self) -> Lane:
        self._context.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._context.__exit__(*raised)


class Recorder:
    """Makes CUDA graphs that run one after the other, in the same memory."""

    def __init__(self, device: torch.device, runs: bool = True) -> None:
        """`runs`: each runs once when it is made, for the first time takes longer."""
        self.runs = runs
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does the work again, with what its tensors hold then; on the CPU the work itself. Here it is done twice,
        for its kernels to be compiled and for the device to know the graph. It may wait for nothing."""
        if self._stream is None:
            return work
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            work()
            self._stream.synchronize()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            work()
            graph.capture_end()
            if self.runs:
                graph.replay()
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        return graph.replay


def upload(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device; nothing waits for it."""
    if device.type == "cpu":
        return values.clone()
    return values.pin_memory().to(device, non_blocking=True)


def download(values: torch.Tensor) -> torch.Tensor:
    """A copy in (pinned) host memory, complete once the stream has come here; nothing waits for it."""
    if values.device.type == "cpu":
        return values.clone()
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
