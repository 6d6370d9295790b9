"""The scheduler process's one cache and what the hooks need beside it."""

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hetero_sglang.cache.admission import Account
from hetero_sglang.cache.budget import Budget, Unused
from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.limits import free_host_bytes
from hetero_sglang.cache.parking import Parked
from hetero_sglang.cache.resident_store import ResidentStore
from hetero_sglang.cache.sizes import Shape, table
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config.description import Refresh
from hetero_sglang.config.settings import Settings, resolve
from hetero_sglang.engine.engine import Engine
from hetero_sglang.sglang.adapters import profile_files
from hetero_sglang.sglang.asked import AUTO, options_of, profile_warning
from hetero_sglang.sglang.interface import Configuration
from hetero_sglang.sglang.replies import Replies
from hetero_sglang.sglang.version import installed

logger = logging.getLogger("hetero_sglang")
configuration: Configuration = installed("configuration")


@dataclass
class Check:
    """The verdict of the integrity check, when it was reached, and how many token slots then held a token."""

    verdict: str
    at: float
    written: int


@dataclass
class Turn:
    """A request that goes on with a parked set: as `shared` says, or as `whole` if it has the set `alone`, with `pages`
    [ranks] promised for it, once the radix tree has said how much they share. `asks`: it has tokens that no other has,
    and so wants rows of its own at once."""

    parked: Parked
    whole: Account | None = None
    shared: Account | None = None
    pages: np.ndarray | None = None
    alone: bool = False
    asks: bool = False


@dataclass
class Runtime:
    """Built once per scheduler process, before SGLang sizes its pools."""

    settings: Settings
    policy: str  # --kv-policy, and how its heads find rows
    profile: str | None  # the head profile's file
    profile_warning: str | None  # what speaks against it
    host_bytes: int | None  # --hetero-host-size
    context: int  # tokens of the longest request the model takes
    on_device: bool  # a GPU runs the steps
    item: int  # bytes of a number of K or V, as the start has found it
    engine: Engine | None = None  # once SGLang has built its backend
    scheduler: Any = None
    adapters: tuple[str, ...] = ()  # names of those with a profile of their own
    exporter: Any = None  # of metrics, where they are on
    replies: Replies | None = None  # says in replies what became of their rows, where it can
    batch: list[int] = field(default_factory=list)  # request slots of the batch that runs now
    unused: Unused | None = None  # once SGLang has asked for its token slots
    preempted: list[Any] = field(default_factory=list)  # requests that make room in this scheduling pass
    turns: dict[str, Turn] = field(default_factory=dict)  # by request: of those that this pass looks at, the next turns
    check: Check = field(default_factory=lambda: Check("not checked yet", time.monotonic(), 0))  # the latest
    current: bool = False  # no request or token slot has come or gone since it
    waiting_since: float | None = None  # when requests were first seen to wait while nothing runs
    counters: Counters = field(default_factory=Counters)
    _cache: TieredCache | None = None

    @property
    def cache(self) -> TieredCache:
        """The two-tier cache, once SGLang has built its pool."""
        assert self._cache is not None, "the pool is not built yet"
        return self._cache

    @property
    def built(self) -> bool:
        return self._cache is not None

    @property
    def size(self) -> int:
        """Tensor-parallel ranks."""
        return len(self.settings.ranks)

    def came(self, ws: WorkingSet) -> torch.Tensor:
        """Of a live request, as far as the host knows: [2, Hc], rows that came to its heads, and late ones."""
        assert self.engine is not None, "a request runs"
        return self.engine.tables.counted(ws)

    def shares_of(self, adapter: str | None) -> int:
        """Whose shares of rows a request with the adapter of this id has, as of Grant."""
        if adapter is None or not self.adapters:
            return 0
        ref = self.scheduler.tp_worker.model_runner.lora_manager.lora_refs.get(adapter)
        return 1 + self.adapters.index(ref.lora_name) if ref and ref.lora_name in self.adapters else 0

    def slots(self, shape: Shape, device_bytes: int, joint: bool) -> int:
        """Token slots for a device budget, and for --hetero-host-size or else most of this rank's free host memory.

        This rank's view: ranks see different free memory, so the least of all must be taken."""
        host = self.host_bytes if self.host_bytes is not None else int(0.8 * free_host_bytes() / self.size)
        budget = self._budget(shape)
        slots = budget.slots(device_bytes, host, joint)
        self.unused = Unused(slots, device_bytes, budget.unused(device_bytes, slots, joint))
        return slots

    def _budget(self, shape: Shape) -> Budget:
        return Budget(self.settings, shape, self.context, self.on_device)

    def build_cache(self, slots: int, slot_page: int, shape: Shape, dtype: torch.dtype, device: str) -> TieredCache:
        """Allocate every tier for `slots` token slots (plus SGLang's dummy page) and log where the bytes went.

        HeteroError where the hot pool could not hold a request that the slots can."""
        layout, rule, budget = self.settings.layout, self.settings.rule, self._budget(shape)
        budget.admission(slots)
        all_sizes = budget.sizes(slots)
        sizes, pages = all_sizes[self.settings.rank], [each.hot_pages for each in all_sizes]
        pin = torch.device(device).type == "cuda"
        rows = slots + slot_page
        row = shape.head_dim, shape.v_head_dim, dtype
        resident = ResidentStore(rows, [len(x.resident) for x in layout.layers], *row, device)
        host = HostStore(rows, [len(x.compressed) for x in layout.layers], *row, pin)
        hot = HotPool(sizes.hot_pages, rule.page_size, *row, device)
        cache = self._cache = TieredCache(self.settings, resident, host, hot, self.counters, pages)
        workspaces = budget.workspaces(self.settings.rank, slots) if self.on_device else None
        logger.info(
            "%s: keep ratio %g (floor %.3f), %d resident + %d compressed KV heads on rank %d\n%s\n  head profile: %s",
            self.policy,
            self.settings.keep_ratio,
            self.settings.floor,
            layout.num_resident,
            layout.num_compressed,
            self.settings.rank,
            table(sizes, cache.admission, budget.longest(slots), workspaces),
            " and of adapters ".join(filter(None, (self.profile, ", ".join(self.adapters))))
            or "none is read by this policy",
        )
        if self.unused and (said := self.unused.said(slots, self.settings.keep_ratio)):
            logger.warning("%s", said)
        return cache


_runtime: Runtime | None = None


def runtime() -> Runtime:
    """The process's runtime; hooks that call this are only installed where there is one."""
    assert _runtime is not None, "no heterocache runtime in this process"
    return _runtime


def start_runtime(server_args: Any, rank: int, size: int) -> Runtime:
    """Resolve the server's arguments for one rank; replaces an earlier runtime of the process (tests)."""
    global _runtime
    profile, options = options_of(server_args)
    settings = resolve(profile, rank=rank, size=size, **options)
    _runtime = Runtime(
        settings=settings,
        policy=f"{server_args.kv_policy}{_how(settings, server_args.hetero_index)}",
        profile=None if server_args.hetero_profile == AUTO else str(server_args.hetero_profile),
        profile_warning=profile_warning(server_args),
        adapters=tuple(profile_files(server_args)),
        host_bytes=None if server_args.hetero_host_size is None else int(server_args.hetero_host_size * 1e9),
        context=configuration.model_config(server_args).context_len,
        on_device=server_args.attention_backend == "flashinfer",
        item=options["itemsize"],
        # several tokenizer processes lack the plugin that makes the value of SGLang's list
        replies=Replies(server_args.incremental_streaming_output) if server_args.tokenizer_worker_num == 1 else None,
    )
    return _runtime


def _how(settings: Settings, asked: str) -> str:
    """How heterocache's heads find rows."""
    if settings.index is not None:
        index = settings.index
        return f", {index.probed.sum()} of {index.probed.size} heads by key index, {index.in_a_step:.0f} in a step"
    if settings.policy.refresh is not Refresh.DRIFT:
        return ""
    make_one = " (the profile has no key index; `hetero-sglang profile index` makes one)" if asked == "auto" else ""
    return f", by pivots{make_one}"
