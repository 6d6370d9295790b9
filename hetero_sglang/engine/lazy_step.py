"""The lazy rule in torch: before a head attends, what it wants by its key index is brought from the host store."""

from __future__ import annotations

import torch

from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.ops.reference.choose import PART, choose, run_scores, used_at_first
from hetero_sglang.ops.reference.index import index, probe
from hetero_sglang.ops.reference.swap_in import swap_in


class LazyHeads:
    """Heads with a key index, all alike: how a prompt's end chooses their rows, on any device."""

    def __init__(self, cache: TieredCache) -> None:
        assert cache.index is not None
        self.cache, self.settings, self.index, self.run = cache, cache.settings, cache.index, cache.index.run

    def pick(self, scores: torch.Tensor, count: int, low: int, high: int) -> torch.Tensor:
        """At prefill end: positions [C, count] ascending, of the best whole runs within [low, high); scores [C, L]."""
        first, last = low // self.run, high // self.run
        best = run_scores(scores, self.run)[:, first:last].topk(count // self.run).indices.sort(1).values + first
        return (best[..., None] * self.run + torch.arange(self.run, device=scores.device)).flatten(1)

    def first_use(self, scores: torch.Tensor) -> torch.Tensor:
        """`used` int32 [C, L] of a prompt's tokens by its scores [C, L]: their runs', 0 where those are incomplete."""
        best = used_at_first(run_scores(scores, self.run)).repeat_interleave(self.run, 1)
        return torch.nn.functional.pad(best, (0, scores.shape[1] - best.shape[1]))


class LazyStep(LazyHeads):
    """Key indexes written and asked in torch, for one layer at a time."""

    def write(self, layer: int, slots: torch.Tensor, k: torch.Tensor) -> None:
        """Index new keys k [n, C, D] at token slots [n]."""
        made = index(k, self.index.encode[layer], self.index.offset[layer], self.index.fields)  # [C, n, words]
        self.index.rows[layer][:, slots.to(made.device)] = made

    def step(self, ws: WorkingSet, layer: int, q: torch.Tensor, scale: float) -> None:
        """Before a decode step attends: q [C, G, D] of the layer's compressed heads; the new token is in its row."""
        spec = self.settings.layout.layers[layer]
        if not spec.compressed or not ws.has_choice(spec.first):
            return
        hot, rule, length = self.cache.hot, self.settings.rule, ws.slots.numel()
        numbers = range(spec.first, spec.first + len(spec.compressed))
        rows = torch.stack([ws.flat(n, ws.selected_rows(n)) for n in numbers])  # [C, n] flat
        heads = rows[:, :: self.run]  # [C, places], each run's first row
        # The newest token is in the ring, and where rows come ahead of its layer its index is not there yet.
        kept = self.index.rows[layer].index_select(1, ws.slots[:-1].to(q.device))  # [C, L - 1, words]
        scores = run_scores(probe(q, kept, self.index.decode[layer], self.index.fields, scale), self.run)
        used = hot.used.view(-1)[rows]  # [C, n]
        mine = used[:, :: self.run].contiguous()
        held = hot.position.view(-1)[heads] // self.run
        low, high = rule.sink // self.run, (length - int(ws.ring[spec.first])) // self.run
        want = max(1, heads.shape[1] // PART)
        swaps = choose(scores, held, mine, length, low, high, want, self.settings.most_swaps)
        hot.used.view(-1)[rows] = mine.repeat_interleave(self.run, 1)
        self.cache.counters.late_rows += swaps.late * self.run
        tokens = swaps.run.numel() * self.run
        if tokens:
            host = self.cache.host.blocks[layer]
            swap_in(swaps, host, ws.slots, rows.unflatten(1, (-1, self.run)), hot, length, self.run)
            self.cache.counters.fetched_rows += tokens
            self.cache.counters.fetched_bytes += tokens * host.shape[-1] * host.element_size()
