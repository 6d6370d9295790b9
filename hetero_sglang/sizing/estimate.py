"""What a GPU's memory holds beside a model's weights, by the same arithmetic as a server's start."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hetero_sglang.cache.admission import Admission
from hetero_sglang.cache.budget import Budget
from hetero_sglang.cache.sizes import Sizes
from hetero_sglang.config.defaults import DRIFT_THRESHOLD, MONITOR_INTERVAL, SINK, WINDOW
from hetero_sglang.config.settings import Settings, resolve
from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.base import Policy
from hetero_sglang.policy.heterocache import HeteroCache, IndexedHeads
from hetero_sglang.profile.ablation import alike
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.sizing.model import Model

GIB = 1 << 30
LENGTHS = (4 << 10, 32 << 10, 128 << 10)  # of requests that are counted


def settings_of(model: Model, profile: HeadProfile, keep_ratio: float, ranks: int) -> Settings:
    """heterocache's, all other flags at their defaults. Raises HeteroError as a server's start does."""
    policy: Policy = HeteroCache()
    if profile.index is not None:
        shape = model.shape
        profile = alike(shape.num_layers, shape.num_kv_heads, shape.num_query_heads, shape.head_dim, profile.index)
        policy = IndexedHeads()
    return resolve(
        profile,
        policy=policy,
        keep_ratio=keep_ratio,
        window=WINDOW,
        sink=SINK,
        dense_below=None,
        drift_threshold=DRIFT_THRESHOLD,
        monitor_interval=MONITOR_INTERVAL,
        itemsize=model.item,
        size=ranks,
    )


@dataclass(frozen=True)
class Estimate:
    """One GPU of each rank: `memory` GiB, of which SGLang gives the share `fraction` to weights and KV; `host`: GB of
    host memory a rank may take, None: what the token slots need. The poorest rank decides."""

    model: Model
    settings: Settings
    context: int
    memory: float
    fraction: float
    host: float | None = None

    @property
    def ranks(self) -> int:
        """GPUs."""
        return len(self.settings.ranks)

    @cached_property
    def kv_bytes(self) -> int:
        """For the KV cache and our workspaces, on each GPU. Raises HeteroError where the weights leave none."""
        weights = self.model.weights / self.ranks
        left = int(self.memory * GIB * self.fraction - weights)
        if left <= 0:
            raise HeteroError(
                f"the weights of {self.model.name} take {weights / 1e9:.1f} GB of each GPU, and of --gpu-memory "
                f"{self.memory:g} GiB {self.memory * GIB * self.fraction / 1e9:.1f} GB are for weights and KV "
                f"(--mem-fraction-static {self.fraction:g}); take more memory or raise --tp."
            )
        return left

    @cached_property
    def budget(self) -> Budget:
        """Of the server."""
        return Budget(self.settings, self.model.row, self.context, on_device=True)

    @cached_property
    def workspaces(self) -> int:
        """Bytes on each GPU."""
        return max(self.budget.workspaces(rank).total for rank in range(self.ranks))

    @cached_property
    def slots(self) -> int:
        """Token slots. Raises HeteroError where there are none."""
        found = self.budget.slots(self.kv_bytes, None if self.host is None else int(self.host * 1e9))
        if not found:
            host = "" if self.host is None else f", and of --host-size {self.host:g} GB"
            raise HeteroError(
                f"--gpu-memory {self.memory:g} GiB leaves {self.kv_bytes / 1e9:.1f} GB for KV{host}, where workspaces "
                f"for requests of {self.context} tokens alone take {self.workspaces / 1e9:.1f} GB; lower "
                f"--context-length or take more memory."
            )
        return found

    @cached_property
    def sizes(self) -> Sizes:
        """Of the rank with most host memory."""
        return max(self.budget.sizes(self.slots), key=lambda sizes: sizes.host_bytes_per_slot)

    @cached_property
    def admission(self) -> Admission:
        """Raises HeteroError where a request that the slots hold does not fit the hot pool."""
        return self.budget.admission(self.slots)

    @property
    def dense_cell(self) -> int:
        """Bytes of a token in plain SGLang, on each GPU."""
        return self.sizes.resident_bytes_per_slot + self.sizes.host_bytes_per_slot

    @property
    def dense_slots(self) -> int:
        """Plain SGLang's token slots in the same memory; it has no workspaces of ours."""
        return self.kv_bytes // self.dense_cell

    @property
    def host_bytes(self) -> int:
        """Of one rank."""
        return self.slots * self.sizes.host_bytes_per_slot

    def at_once(self, length: int) -> int:
        """Requests of so many tokens; 0 beyond the context."""
        return 0 if length > self.context else min(self.slots // length, self.admission.concurrent(length))

    def dense_at_once(self, length: int) -> int:
        """In plain SGLang."""
        return 0 if length > self.context else self.dense_slots // length
