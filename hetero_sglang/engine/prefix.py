"""Rows of prompts' prefixes for a prefill: from the resident store, a working set, the device's cached prefixes, or the
host; and what the device keeps of a pass for others to find."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.lanes import mark, upload
from hetero_sglang.cache.narrow import narrowed
from hetero_sglang.cache.prefix_cache import NOWHERE
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.engine.plan import Prompt, Sources
from hetero_sglang.ops.base import LayerBuffers, flat_rows
from hetero_sglang.transfer.prefix_loader import PrefixLoader


class Prefixes:
    """Owned by the engine of a device; lives from pass to pass."""

    def __init__(self, cache: TieredCache, ops: Any, layers: list[LayerBuffers], tables: DeviceTables) -> None:
        self.cache, self.layers, self.tables, self.device = cache, layers, tables, cache.hot.k.device
        self.loader = PrefixLoader(ops, cache.host, self.device, cache.counters)

    def begin(self, prompts: list[Prompt]) -> None:
        """Once per prefill pass, of prompts that read whole prefixes: rows start to move."""
        cache, size = self.cache, self.cache.hot.page_size
        # The others find all rows in their working sets, or read none; where there are no others nothing waits.
        asking = [seq for seq in prompts if not seq.held and (seq.prefix or not seq.exact)]
        slots_of, found = _on_host(asking), []
        needed: set[int] = set()  # groups that this pass reads or fills
        for seq, slots in zip(asking, slots_of, strict=True):
            found.append(places := cache.find_prefix(slots[: seq.prefix].numpy()))
            needed.update(np.unique(places[places != NOWHERE] // size).tolist())
        brought = []
        for seq, slots, places in zip(asking, slots_of, found, strict=True):
            here = places != NOWHERE
            lacking = np.empty(0, dtype=np.int64)
            if not seq.exact:  # else its working set will have every row
                lacking = (cache.prefixes.place[slots.numpy()] == NOWHERE).nonzero()[0]
            kept = cache.keep_prefix(slots.numpy()[lacking], needed)
            needed.update(np.unique(kept // size).tolist())
            brought.append(slots[: seq.prefix][torch.from_numpy(~here)])
            cache.counters.prefix_rows_held += int(here.sum()) * len(self.layers)
            index = (here.nonzero()[0], places[here], (~here).nonzero()[0], lacking[: len(kept)], kept)
            seq.sources = Sources(*(upload(torch.from_numpy(each).long(), self.device) for each in index))
        rows = torch.cat(brought) if brought and cache.host.nbytes else torch.empty(0, dtype=torch.int64)
        self.loader.begin(rows, mark(self.device))  # last: small copies queue behind large ones

    def whole(
        self, layer: int, prompts: list[Prompt], k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K [sum L, H, D] and V [sum L, H, Dv] of all prompts in turn, whose new tokens' are k, v [n, H, D or Dv], in
        the same order."""
        if not any(seq.prefix for seq in prompts):
            return k, v
        total, buffers = sum(seq.length for seq in prompts), self.layers[layer]
        made = k.new_empty(total, *k.shape[1:]), v.new_empty(total, *v.shape[1:])
        comes = buffers.compressed.numel() > 0 and self.loader.slots.numel() > 0
        # Stores may hold fewer bits than the model makes.
        host = self.loader.take(layer).to(k.dtype).split((k.shape[2], v.shape[2]), 2) if comes else (k[:0], v[:0])
        start = taken = fresh = 0
        for runs, some in groupby(prompts, lambda seq: seq.prefix == 0):
            if runs:  # of several prompts that begin, in one copy
                count = sum(seq.count for seq in some)
                for out, new in zip(made, (k, v), strict=True):
                    out[start : start + count] = new[fresh : fresh + count]
                start, fresh = start + count, fresh + count
                continue
            for seq in some:
                count = seq.sources.brought.numel()
                theirs = tuple(each[taken : taken + count] for each in host)
                resident = (buffers.resident_k, buffers.resident_v)
                compressed = self._compressed(layer, seq, theirs, k.dtype) if buffers.heads.numel() else theirs
                for out, new, store, rows in zip(made, (k, v), resident, compressed, strict=True):
                    mine = out[start : start + seq.length]
                    mine[seq.prefix :] = new[fresh : fresh + seq.count]
                    if buffers.resident.numel():
                        mine[: seq.prefix].index_copy_(
                            1, buffers.resident, store[seq.slots[: seq.prefix]].to(out.dtype)
                        )
                    if buffers.heads.numel():
                        mine[: seq.prefix].index_copy_(1, buffers.compressed, rows)
                start, taken, fresh = start + seq.length, taken + count, fresh + seq.count
        if comes:
            self.loader.done(layer)
        return made

    def _compressed(
        self, layer: int, seq: Prompt, host: tuple[torch.Tensor, ...], dtype: torch.dtype
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        """K [prefix, C, D] and V [prefix, C, Dv] of a prefix's compressed heads; `host`: what comes from there."""
        buffers, sources = self.layers[layer], seq.sources
        if seq.held:
            start = self.tables.page_start[seq.ws.slot, buffers.numbers, None]
            row = torch.arange(seq.prefix, device=self.device)
            flat = flat_rows(self.tables.page_list, start, row, self.cache.hot.page_size).t()  # [prefix, C]
        elif sources.known.numel():
            flat = self.cache.prefixes.rows(sources.places, buffers.numbers)
        else:
            return host
        found = tuple(store.view(-1, store.shape[-1])[flat].to(dtype) for store in (buffers.hot_k, buffers.hot_v))
        if not sources.brought.numel():
            return found
        for number, (mine, theirs) in enumerate(zip(found, host, strict=True)):
            both = mine.new_empty(seq.prefix, *mine.shape[1:])
            both[sources.known], both[sources.brought] = mine, theirs
            found = (*found[:number], both, *found[number + 1 :])
        return found

    def keep(self, layer: int, seq: Prompt, keys: torch.Tensor, values: torch.Tensor) -> None:
        """What the device keeps of a prompt's K [L, H, D] and V [L, H, Dv]."""
        buffers, sources = self.layers[layer], seq.sources
        if sources.kept.numel() and buffers.heads.numel():
            rows = self.cache.prefixes.rows(sources.kept_places, buffers.numbers)  # [m, C]
            kept = (each[sources.kept][:, buffers.compressed].flatten(0, 1) for each in (keys, values))
            self.cache.hot.write(rows.flatten(), *(narrowed(each, self.cache.hot.k.dtype) for each in kept))

    def end(self) -> None:
        """The last layer is through."""
        self.loader.end()


def _on_host(prompts: list[Prompt]) -> Sequence[torch.Tensor]:
    """Token slots [length] int64 of each; waits for the device, once."""
    every = torch.cat([seq.slots for seq in prompts]).cpu().long() if prompts else torch.empty(0, dtype=torch.int64)
    return every.split([seq.length for seq in prompts])
