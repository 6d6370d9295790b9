"""A prompt's new tokens over a working set: the one that the turn before has left, or one made of their prefix's index.

They read like decode steps, a few tokens in each. Heads that have a key index look for what these want, as in a step
with several queries; rows that come are seated before the heads attend, to what they hold and to the new tokens before
each. Then the ring goes on to the newest. Where there are CUDA graphs a layer's operations are two of them: launched
one by one they would take several times as long as they run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.lanes import Recorder
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.engine.going import BLOCK, BLOCKS, Going, Places
from hetero_sglang.engine.lazy import Lazy
from hetero_sglang.engine.plan import Prompt
from hetero_sglang.ops.base import Behind, LayerBuffers
from hetero_sglang.ops.step import DecodeStep
from hetero_sglang.transfer.write_back import WriteBack

_ASKED = 64  # new tokens, at most, that say what a set is made of
_RECORDED = (2, 8, BLOCKS)  # of so many blocks there are graphs


@dataclass(frozen=True)
class Recorded:
    """A layer's graphs."""

    first: dict[int, Callable[[], None]]  # by how many blocks they have room for, the fewest first
    last: Callable[[], None]


class Append:
    """Attention of prompts that go on with a working set; every head of the model is compressed."""

    def __init__(
        self, cache: TieredCache, ops: Any, tables: DeviceTables, layers: list[LayerBuffers], finder: Lazy,
        write_back: WriteBack,
    ) -> None:  # fmt: skip
        self.cache, self.ops, self.tables, self.layers, self.finder = cache, ops, tables, layers, finder
        self.write_back, self.rule, self.device = write_back, cache.settings.rule, cache.hot.k.device
        self.places = Places(tables, finder.turns[:1])
        self.going: dict[int, Going] = {}  # by request slot
        self.recorded: list[Recorded] = []  # by layer, where there are graphs

    # ---- graphs

    def record(
        self, step: DecodeStep, query_heads: int, dtype: torch.dtype, scales: list[float], context: int
    ) -> None:  # fmt: skip
        """Before any request: every layer's operations become graphs, which run in this step's buffers, for prompts of
        up to `context` tokens; `scales`: of the layers' logits."""
        hot, most, heads = self.cache.hot, BLOCK * BLOCKS, self.layers[0].heads.numel()
        self.places = Places(self.tables, self.finder.turns[:1], context)
        self.work, none = step.work, self.places.none()

        def make(heads: int, dim: int) -> torch.Tensor:
            return torch.zeros(most, heads, dim, dtype=dtype, device=self.device)

        self.new = make(query_heads, hot.k.shape[2]), make(heads, hot.k.shape[2]), make(heads, hot.v.shape[2])
        self.out = make(query_heads, hot.v.shape[2])
        recorder = Recorder(self.device)
        for layer, scale in enumerate(scales):
            first = {}
            for blocks in _RECORDED:
                going = replace(none, blocks=none.blocks[:blocks])
                first[blocks] = recorder.record(partial(self._first, layer, going, *self.new, self.out, context, scale))
            last = recorder.record(partial(self._last, layer, none, self.new[0], context, scale))
            self.recorded.append(Recorded(first, last))

    # ---- a pass

    def begin(self, prompts: list[Prompt], step: DecodeStep) -> None:
        """Once per prefill pass; `step`: whose buffers nothing else uses meanwhile."""
        self.work = step.work
        self.finder.allow(self.work, None)
        for seq in prompts:
            if seq.restores:
                seq.ws.length = seq.prefix
        self.going = self.places.go(prompts)

    def attend(
        self, layer: int, seq: Prompt, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """q [n, Hq, D], k [n, H, D], v [n, H, Dv] of the request's new tokens; returns [n, Hq, Dv]."""
        going, ws = self.going[seq.ws.slot], seq.ws
        recorded = self.recorded[layer] if going.header is not None and self.recorded else None
        if seq.restores:
            self._restore(layer, seq, q, scale)
        if recorded:
            assert going.header is not None
            self.places.now.copy_(going.header)
            for buffer, values in zip(self.new, (q, k, v), strict=True):
                buffer[: seq.count].copy_(values)
            next(graph for blocks, graph in recorded.first.items() if blocks >= len(going.blocks))()
            out = self.out[: seq.count]
        else:
            out = q.new_empty(*q.shape[:2], v.shape[2])
            self._first(layer, going, q, k, v, out, ws.length, scale)
        if seq.count > self.rule.window:
            self.write_back.hold()  # rows of this pass are looked for in the host store
            if recorded:
                recorded.last()
            else:
                self._last(layer, going, q, seq.length, scale)
        if layer == len(self.layers) - 1:
            ws.length = max(ws.length, seq.length)
            self.cache.counters.appended_tokens += seq.count
            self.cache.counters.restored_requests += seq.restores
        return out

    def _first(
        self, layer: int, going: Going, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor,
        length: int, scale: float,
    ) -> None:  # fmt: skip
        """What q attend to goes to `out` [n, Hq, Dv]; `length`: what the set stands for, or may."""
        buffers, rule, run = self.layers[layer], self.rule, self.finder.index[layer].run
        behind = Behind(going.numbers, rule.window_of(run), run, rule.sink, rule.ring)
        for block in going.blocks:
            asks, some = q.index_select(0, block.asked), block.tokens
            # More than a step wants, as others chose the rest.
            self.finder.seek(layer, asks, going.slots, going.starts, block.step, length, scale, self.work, part=1)
            mine = replace(behind, numbers=block.numbers)
            out[some].copy_(self.ops.append(q[some], k, v, buffers, block.step, mine, scale))
        self.ops.keep(k, v, buffers, going.after, behind)

    def _last(self, layer: int, going: Going, q: torch.Tensor, length: int, scale: float) -> None:
        """Which of the new tokens are held beyond the window."""
        asks = q.index_select(0, going.latest)
        self.finder.seek(layer, asks, going.slots, going.starts, going.after, length, scale, self.work)

    def _restore(self, layer: int, seq: Prompt, q: torch.Tensor, scale: float) -> None:
        """Heads hold what queries q [n, Hq, D] want of the prefix: rows come from the host, as many as they keep."""
        buffers, going, length, rule = self.layers[layer], self.going[seq.ws.slot], seq.prefix, self.rule
        caps, step = seq.ws.caps[buffers.numbers], going.blocks[0].step
        some = q[:: -(-len(q) // _ASKED)]
        runs = self._wanted(layer, caps, some, going, length, scale)
        turning = rule.turning(min(caps))
        counts = [cap - rule.sink - turning if cap < length else 0 for cap in caps]
        selected, used = self.finder.best(layer, runs, length, counts, rule.sink), self.finder.used(layer, runs, length)
        tables = step.cap[0, buffers.numbers], step.page_start[0, buffers.numbers], step.page_list
        slots = going.slots[going.first : going.first + seq.length]
        self.ops.restore(buffers, slots, length, selected.int(), used, *tables, max(caps), rule.sink, rule.ring)

    def _wanted(
        self, layer: int, caps: list[int], q: torch.Tensor, going: Going, length: int, scale: float
    ) -> torch.Tensor:
        """Scores [C, U] of runs. Heads without an index go by the others of their layer, or by what is recent."""
        mine = self.finder.index[layer]
        count = (length - 1) // mine.run
        which = self.finder.which[layer]
        runs = torch.arange(count, dtype=torch.float32, device=self.device).div(count).repeat(len(caps), 1)
        if which:
            found = self.finder.ask(layer, q, going.slots, going.starts, going.blocks[0].step, length, scale, self.work)
            full = [number for number, c in enumerate(which) if caps[c] < length]
            if full:
                runs[:] = found[full].mean(0)  # [U]
                runs[[which[number] for number in full]] = found[full]
        return runs
