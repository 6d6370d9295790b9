"""The two-tier cache of one tensor-parallel rank: its stores, its requests, and the laws that tie them together."""

from __future__ import annotations

import torch

from hetero_sglang.memory.host_store import HostStore
from hetero_sglang.memory.hot_pool import HotPool
from hetero_sglang.memory.resident_store import ResidentStore
from hetero_sglang.memory.working_set import WorkingSet
from hetero_sglang.metrics import Counters
from hetero_sglang.retrieval.device_fetcher import DeviceFetcher
from hetero_sglang.retrieval.fetcher import Fetcher
from hetero_sglang.retrieval.monitor import DriftMonitor
from hetero_sglang.retrieval.step_chooser import StepChooser
from hetero_sglang.settings import Settings


class HeteroCache:
    """Owns every pool and working set. Used from the scheduler's thread alone."""

    def __init__(
        self,
        settings: Settings,
        resident: ResidentStore,
        host: HostStore,
        hot: HotPool,
        counters: Counters,
        on_device: bool = False,
    ) -> None:
        """`on_device`: DeviceEngine runs the steps, which nothing may hold up; else TorchEngine."""
        self.settings = settings
        self.resident = resident
        self.host = host
        self.hot = hot
        self.counters = counters
        self.requests: dict[int, WorkingSet] = {}  # by request slot
        self.written = torch.zeros(host.rows, dtype=torch.bool)  # token slots that hold a token, in both tiers
        self.fetcher = (DeviceFetcher if on_device else Fetcher)(settings, host, hot, counters)
        if not on_device:  # TorchEngine's; the device's are in DeviceEngine
            self.monitor = DriftMonitor(settings, self.fetcher, hot, counters)
            self.chooser = StepChooser(settings, host, hot, counters)

    def demand(self, prompt: int, max_new: int) -> int:
        """Hot pages a request would hold."""
        return self.settings.rule.demand(prompt, max_new)

    def start(self, slot: int, prompt: int, max_new: int) -> WorkingSet:
        """A request got request slot `slot`: reserve its working set."""
        if slot in self.requests:
            raise RuntimeError(f"request slot {slot} already has a working set")
        ws = self.requests[slot] = WorkingSet(self.hot, self.settings.rule, prompt, max_new)
        ws.slot = slot
        self.counters.requests += 1
        return ws

    def make_room(self, ws: WorkingSet, length: int) -> None:
        """Before a decode step: let a request that outgrows its reserve keep what its budget allows."""
        if ws.final < length <= ws.max_length and not ws.grow():
            self.counters.refused_growth += 1

    def compressed(self, ws: WorkingSet) -> None:
        """A prompt has ended longer than its working set: count what the request keeps on the device, and of what."""
        resident = self.resident.nbytes // self.host.rows  # bytes of a token
        page = self.hot.nbytes // max(1, self.hot.pages)
        self.counters.compressed_requests += 1
        self.counters.kept_bytes += ws.pages.numel() * page + ws.final * resident
        self.counters.dense_bytes += ws.final * (resident + self.host.bytes_per_row)

    def finish(self, slot: int) -> None:
        """The request of this slot ended, was aborted or retracted: its pages are free at once."""
        self.requests.pop(slot).release()

    def release_slots(self, slots: torch.Tensor) -> None:
        """Token slots were freed in SGLang's allocator: free in both tiers, fetches from them are void."""
        self.host.release(slots)
        self.written[slots] = False

    def reset(self) -> None:
        """Cache flush: every request, page and row is forgotten."""
        for slot in list(self.requests):
            self.finish(slot)
        self.release_slots(torch.arange(self.host.rows))

    def check_integrity(self, free_slots: torch.Tensor | None = None) -> None:
        """Conservation in every tier; `free_slots` [n] are the token slots free in SGLang's allocator.

        Raises RuntimeError with the counts when a page or row is lost, owned twice, or kept for a free slot.
        """
        empty = torch.empty(0, dtype=torch.int64)
        self.hot.check_integrity(torch.cat([empty, *(w.pages for w in self.requests.values())]))
        self.fetcher.check_integrity(idle=not self.requests)
        if free_slots is not None and bool(self.written[free_slots].any()):
            kept = int(self.written[free_slots].sum())
            raise RuntimeError(f"{kept} of {free_slots.numel()} free token slots still count as holding a token")

    def levels(self) -> dict[str, int]:
        """Counters and what is in use, told in microseconds."""
        return {
            **self.counters.as_dict(),
            "live_requests": len(self.requests),
            "hot_pages": self.hot.pages,
            "hot_pages_free": self.hot.available,
        }

    def stats(self) -> dict[str, float | int | str | bool]:
        """Levels and sizes, for /hetero/stats and /server_info."""
        return {
            **self.levels(),
            "token_slots_written": int(self.written.sum()),
            "resident_bytes": self.resident.nbytes,
            "hot_bytes": self.hot.nbytes,
            "host_bytes": self.host.nbytes,
            **self.fetcher.stats(),
        }

    def close(self) -> None:
        """Stop the worker and unmap the host store."""
        self.fetcher.close()
        self.host.close()
