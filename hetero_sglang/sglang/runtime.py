"""The scheduler process's one cache and what the hooks need beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from hetero_sglang.cache import HeteroCache
from hetero_sglang.memory.host_store import HostStore
from hetero_sglang.memory.hot_pool import HotPool
from hetero_sglang.memory.layout import HeadLayout, build_layout
from hetero_sglang.memory.limits import free_host_bytes
from hetero_sglang.memory.resident_store import ResidentStore
from hetero_sglang.memory.sizes import Shape, Sizes, slots_within, table
from hetero_sglang.metrics import Counters
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.settings import Settings, resolve

logger = logging.getLogger("hetero_sglang")


@dataclass
class Runtime:
    """Built once per scheduler process, before SGLang sizes its pools."""

    profile: HeadProfile
    settings: Settings
    host_bytes: int | None  # --hetero-host-size
    size: int  # tensor-parallel ranks
    on_device: bool  # DeviceEngine runs the steps, not TorchEngine
    cache: HeteroCache | None = None
    when_built: Callable[[], None] | None = None  # called once, when the scheduler is
    scheduler: Any = None
    batch: list[int] = field(default_factory=list)  # request slots of the batch that runs now
    checked_after: int = 0  # requests served when the idle integrity check last ran
    counters: Counters = field(default_factory=Counters)

    def layouts(self) -> list[HeadLayout]:
        """Every rank's layout: capacities must agree although ranks own different numbers of resident heads."""
        return [build_layout(self.profile, self.settings.keep_ratio, rank, self.size) for rank in range(self.size)]

    def slots(self, shape: Shape, device_bytes: int, joint: bool) -> int:
        """Token slots for a device budget, and for --hetero-host-size or else most of this rank's free host memory."""
        host = self.host_bytes if self.host_bytes is not None else int(0.8 * free_host_bytes() / self.size)
        return slots_within(self.layouts(), shape, self.settings.rule.page_size, device_bytes, host, joint)

    def build_cache(self, slots: int, slot_page: int, shape: Shape, dtype: torch.dtype, device: str) -> HeteroCache:
        """Allocate every tier for `slots` token slots (plus SGLang's dummy page) and log where the bytes went."""
        layout, rule = self.settings.layout, self.settings.rule
        sizes = Sizes(shape, layout, rule.page_size, slots)
        pin = torch.device(device).type == "cuda"
        rows = slots + slot_page
        resident = ResidentStore(
            rows, [len(x.resident) for x in layout.layers], shape.head_dim, shape.v_head_dim, dtype, device
        )
        host = HostStore(rows, [len(x.compressed) for x in layout.layers], shape.head_dim, shape.v_head_dim, dtype, pin)
        hot = HotPool(sizes.hot_pages, rule.page_size, shape.head_dim, shape.v_head_dim, dtype, device)
        self.cache = HeteroCache(self.settings, resident, host, hot, self.counters, self.on_device)
        self.cache.fetcher.start_worker(pin)
        logger.info("%s", table(sizes, rule, self.settings.keep_ratio, self.settings.floor))
        longest = rule.dense_below - 1
        if rule.demand(longest, 1) > sizes.hot_pages:
            logger.warning(
                "The hot pool (%d pages) cannot hold a request of %d tokens, which --hetero-dense-below keeps whole "
                "(%d pages); such requests will be refused: give the server more tokens or lower the flag.",
                sizes.hot_pages,
                longest,
                rule.demand(longest, 1),
            )
        return self.cache


_runtime: Runtime | None = None


def runtime() -> Runtime:
    """The process's runtime; hooks that call this are only installed where there is one."""
    assert _runtime is not None, "no heterocache runtime in this process"
    return _runtime


def start_runtime(server_args: Any, rank: int, size: int) -> Runtime:
    """Resolve the server's arguments for one rank; replaces an earlier runtime of the process (tests)."""
    global _runtime
    profile, options = server_args.hetero_options()
    _runtime = Runtime(
        profile=profile,
        settings=resolve(profile, rank=rank, size=size, **options),
        host_bytes=None if server_args.hetero_host_size is None else int(server_args.hetero_host_size * 1e9),
        size=size,
        on_device=server_args.attention_backend == "flashinfer",
    )
    return _runtime
