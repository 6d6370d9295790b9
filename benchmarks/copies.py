"""How fast K/V moves between host and device: each way this project moves it, beside a plain copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.cache.lanes import mark
from hetero_sglang.ops.base import LayerBuffers
from hetero_sglang.ops.chosen import operations
from hetero_sglang.transfer.prefix_loader import PrefixLoader

RUN = 256  # slots of a run, as SGLang's allocator leaves them after a while
HEADS = 8


@dataclass(frozen=True)
class Rate:
    """`nbytes` moved in `seconds`."""

    what: str
    nbytes: int
    seconds: float

    @property
    def gb_per_s(self) -> float:
        return self.nbytes / self.seconds / 1e9


def seconds(device: torch.device, work: Callable[[], object], rounds: int = 5) -> float:
    """Median time of `work`, waits of the host included; the first run is not counted."""
    work()
    return statistics.median(once(device, work) for _ in range(rounds))


def once(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of one run."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    torch.cuda.synchronize(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def plain(device: torch.device, nbytes: int) -> tuple[Rate, Rate]:
    """One large pinned copy to the device, and one back."""
    here = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    up = seconds(device, lambda: there.copy_(here, non_blocking=True))
    down = seconds(device, lambda: here.copy_(there, non_blocking=True))
    return Rate("plain copy to the device", nbytes, up), Rate("plain copy to the host", nbytes, down)


def patterns(tokens: int) -> dict[str, torch.Tensor]:
    """Slots [tokens] of a prefix: in order, in runs that lie anywhere, and each one anywhere."""
    random = torch.Generator().manual_seed(0)
    runs = torch.randperm(tokens // RUN, generator=random)[:, None] * RUN + torch.arange(RUN)
    return {
        "one run": torch.arange(tokens),
        f"runs of {RUN}": runs.reshape(-1),
        "scattered": torch.randperm(tokens, generator=random),
    }


def prefix(host: HostStore, device: torch.device, slots: torch.Tensor, what: str) -> Rate:
    """PrefixLoader brings the rows of `slots` [n], layer after layer: in whole blocks, or row by row."""
    counters = Counters()
    loader = PrefixLoader(operations(device), host, device, counters)

    def bring() -> None:
        loader.begin(slots, mark(device))
        for layer in loader.layers:
            loader.take(layer)
            loader.done(layer)
        loader.end()

    taken = seconds(device, bring, rounds=3)
    way = "copied" if counters.prefix_rows_copied else "read"
    return Rate(f"prefix, {what}, {way}", slots.numel() * host.bytes_per_row, taken)


def write_back(host: HostStore, device: torch.device, slots: torch.Tensor, what: str) -> Rate:
    """`store` writes the host rows of a prefill chunk at `slots` [n], layer after layer."""
    chunk = slots.to(device)
    dims = (host.head_dim, host.v_head_dim)
    k, v = (torch.randn(len(slots), HEADS, dim, device=device).to(host.dtype) for dim in dims)
    ops, layers = operations(device), [_buffers(host, layer, device) for layer, heads in enumerate(host.heads) if heads]

    def write() -> None:
        for buffers in layers:
            ops.store(buffers, chunk, k, v, resident=False)

    return Rate(f"write-back, {what}", len(slots) * host.bytes_per_row, seconds(device, write))


def _buffers(host: HostStore, layer: int, device: torch.device) -> LayerBuffers:
    """A layer whose last heads are resident, and nowhere stored."""
    heads, dims = host.heads[layer], (host.head_dim, host.v_head_dim)
    role = torch.tensor([-1 - h if h < heads else h - heads for h in range(HEADS)], dtype=torch.int32)
    resident_k, resident_v = (torch.empty(1, HEADS - heads, dim, dtype=host.dtype, device=device) for dim in dims)
    hot_k, hot_v = (torch.empty(1, 16, dim, dtype=host.dtype, device=device) for dim in dims)
    position = torch.zeros(1, 16, dtype=torch.int32, device=device)
    return LayerBuffers(
        role.to(device), resident_k, resident_v, host.blocks[layer], hot_k, hot_v, position,
        position.float(), 0,
    )  # fmt: skip
