"""The lazy rule inside a decode step on the device: what a head wants by its key index is there when it attends."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hetero_sglang.cache.lanes import Lane, Mark, mark
from hetero_sglang.cache.sizes import LOOK_WORKSPACE
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.config import development
from hetero_sglang.engine.lazy_step import LazyHeads
from hetero_sglang.ops.step import DecodeStep
from hetero_sglang.ops.triton.choose import choose
from hetero_sglang.ops.triton.index import index
from hetero_sglang.ops.triton.probe import LayerIndex, probe
from hetero_sglang.ops.triton.store import StepTables
from hetero_sglang.ops.triton.swap_in import swap_in
from hetero_sglang.ops.triton.workspace import Workspace

_EVERY = 8  # steps between two readings of the device's counts


class DeviceLazy(LazyHeads):
    """Launches alone; nothing waits. All recorded in the step's graph but `begin`."""

    def __init__(self, cache: TieredCache, heads: list[torch.Tensor]) -> None:
        """heads [C] int32 by layer: which are compressed."""
        super().__init__(cache)
        store, layers = self.index, cache.settings.layout.layers
        self.layers = [
            LayerIndex(mine, rows, encode, decode, offset, store.fields, spec.first)
            for mine, rows, encode, decode, offset, spec in zip(
                heads, store.rows, store.encode, store.decode, store.offset, layers, strict=True
            )
        ]
        self.widest = max(len(x.compressed) for x in layers)
        device = cache.hot.k.device
        self.counts = torch.zeros(2, dtype=torch.int64, pin_memory=device.type == "cuda")
        self.read: Mark | None = None
        self.most: dict[Workspace, int] = {}
        self.steps = 0
        self.counted: torch.Tensor | None = None
        self.lane = Lane(device, urgent=False)
        self.read_state: dict[int, Mark] = {}  # by layer: the guess has read what it is made of
        self.arrived: dict[int, Mark] = {}  # by layer whose rows come ahead

    def write(self, layer: int, slots: torch.Tensor, k: torch.Tensor) -> None:
        """Index new keys k [n, H, D] at token slots [n]."""
        mine = self.layers[layer]
        index(k, slots, mine.heads, mine.rows, mine.encode, mine.offset, mine.fields)

    def workspace(self, batch: int, context: int, group: int) -> Workspace:
        """For steps of up to `batch` requests of up to `context` tokens."""
        tokens = min(batch * context, max(context, LOOK_WORKSPACE // (4 * self.widest)))
        room = self.settings.most_swaps
        work = Workspace(batch, self.widest, group, context, tokens, self.run, room, self.cache.hot.k.device)
        if self.counted is not None:
            work.counted = self.counted  # of every step, whichever its buffers
        self.counted = work.counted
        self.most[work] = room
        return work

    def begin(self, work: Workspace) -> None:
        """Before a step: what was counted until now, and how many runs may come."""
        wanted = development.changed_rows()
        most = self.settings.most_swaps if wanted is None else min(wanted // self.run, self.settings.most_swaps)
        if self.most.get(work) != most:
            self.most[work] = most
            work.most.fill_(most)
        self.steps += 1
        if self.steps % _EVERY == 0:
            self.count()

    def count(self) -> None:
        """Take over what the device had counted when it was last asked, and ask again."""
        if self.read is not None and not self.read.passed:
            return
        counters, cache = self.cache.counters, self.cache
        counters.fetched_rows, counters.late_rows = self.counts.tolist()
        counters.fetched_bytes = counters.fetched_rows * (cache.host.head_dim + cache.host.v_head_dim)
        counters.fetched_bytes *= cache.host.dtype.itemsize
        if self.counted is not None:
            self.counts.copy_(self.counted, non_blocking=True)
            self.read = mark(cache.hot.k.device)

    def ahead(
        self, layer: int, step: DecodeStep, tables: StepTables, queries: Callable[[], torch.Tensor], scale: float
    ) -> None:
        """While the layer before runs its MLP: rows that `layer` wants by guessed queries [B, Hq * D] come in."""
        self.lane.follow(mark(self.cache.hot.k.device))
        with self.lane:
            q = queries()
            self.read_state[layer] = self.lane.mark()
            self.swap(layer, step, tables, q.unflatten(1, (-1, self.cache.hot.k.shape[-1])), scale)
        self.arrived[layer] = self.lane.mark()

    def state_changes(self, layer: int) -> None:
        """What `layer`'s queries are guessed from is about to be overwritten."""
        if layer in self.read_state:
            self.read_state.pop(layer).hold(self.cache.hot.k.device)

    def ready(self, layer: int, step: DecodeStep, tables: StepTables, q: torch.Tensor, scale: float) -> None:
        """Before a layer attends with q [B, Hq, D]: its rows are there, or come now."""
        if layer in self.arrived:
            self.arrived.pop(layer).hold(self.cache.hot.k.device)
        else:
            self.swap(layer, step, tables, q, scale)

    def swap(self, layer: int, step: DecodeStep, tables: StepTables, q: torch.Tensor, scale: float) -> None:
        """Before a layer attends: q [B, Hq, D]; rows that are wanted come in."""
        mine, rule, hot, work = self.layers[layer], self.settings.rule, self.cache.hot, step.work
        assert work is not None
        if not mine.heads.numel():
            return
        probe(q, mine, step.slots, step.starts, tables, scale, rule.sink, rule.window, work)
        choose(mine, tables, hot, rule.sink, rule.window, work)
        host = self.cache.host.blocks[layer]
        swap_in(mine, host, step.slots, step.starts, tables, hot, rule.sink, work)
