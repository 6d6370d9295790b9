"""A made-up request is looked at, chosen for and fetched for before any real one comes.

The first of everything is slow on a device: kernels are loaded, pinned buffers made, the staging ring mirrored. No
user's step should pay for that.
"""

from __future__ import annotations

import time

import torch

from hetero_sglang.cache.hot_pool import EMPTY
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.engine.device_monitor import Choice, DeviceMonitor
from hetero_sglang.engine.glances import Subject

_SLOT = 0  # of a request; none is live yet
_HEADS = (1, 8, 64)  # refilled at once
_PINNED = range(9, 24)  # powers of two, in bytes, of buffers to have at hand
_PATIENCE = 30.0  # seconds for the worker to come up, and for its answers


def rehearse(cache: TieredCache, monitor: DeviceMonitor, queries: torch.Tensor, req_to_token: torch.Tensor) -> bool:
    """Go through it with a short request and the longest; False: not to the end, which costs speed alone.

    queries [layers, batch, Hq, D] and req_to_token [requests, context] as steps have them. Nothing stays behind: no
    page, no row, no count.
    """
    client = cache.fetcher.client
    if client is None or cache.requests or not client.wait_up(_PATIENCE):
        return False
    counted = cache.counters.as_dict()
    if monitor.device.type == "cuda":
        held = [torch.empty(1 << bits, dtype=torch.uint8, pin_memory=True) for bits in _PINNED for _ in range(2)]
        del held  # to the allocator's lists
    try:
        return all(_rehearse(cache, monitor, queries, req_to_token, length) for length in _lengths(cache, monitor))
    finally:
        for name, value in counted.items():
            setattr(cache.counters, name, value)


def _lengths(cache: TieredCache, monitor: DeviceMonitor) -> list[int]:
    """Of prompts that are compressed, and fit."""
    longest = monitor.context - 1
    while longest > 1 and not cache.admission.fits(cache.admission.grant(longest, 1)):
        longest //= 2
    return [n for n in dict.fromkeys((cache.settings.rule.dense_below, longest)) if _fits(cache, n, longest)]


def _fits(cache: TieredCache, length: int, longest: int) -> bool:
    grant = cache.admission.grant(length, 1)
    return length <= longest and not cache.admission.exact(grant, length) and cache.admission.fits(grant)


def _rehearse(
    cache: TieredCache, monitor: DeviceMonitor, queries: torch.Tensor, req_to_token: torch.Tensor, length: int
) -> bool:
    ws = cache.start(_SLOT, cache.admission.grant(length, 1))
    pages = ws.pages.to(monitor.device)
    try:
        monitor.tables.put(_SLOT, ws)
        cache.hot.position[pages] = 0
        monitor.queries, monitor.req_to_token = queries, req_to_token
        monitor.queue.append(Subject(ws, 0, length))
        open_ = monitor.crowd.numbers[ws.refillable(length)[monitor.crowd.numbers]]
        for count in (0, *_HEADS):
            monitor.choose([Choice(ws, number, length, 0.0, None) for number in open_[:count].tolist()])
            if not _finish(monitor):
                return False
        return True
    finally:
        cache.finish(_SLOT)
        cache.hot.position[pages] = EMPTY


def _finish(monitor: DeviceMonitor) -> bool:
    """Until nothing is under way."""
    deadline = time.monotonic() + _PATIENCE
    while monitor.under_way() and time.monotonic() < deadline:
        monitor.fetcher.settle(0.1)
        monitor.advance()
    return not monitor.under_way()
