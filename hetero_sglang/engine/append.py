"""A prompt's new tokens over a working set: the one that the turn before has left, or one made of their prefix's index.

They read like decode steps, a few tokens in each, and all of these at once. Heads that have a key index look for what
the tokens of each want and lack; that comes beside, to be attended to with what they hold and with the new tokens
before each. Then the set takes the new tokens in, and what the last of them want. Where there are CUDA graphs a layer's
operations are one of them for every round, and one more: launched one by one they would take several times as long as
they run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.lanes import Recorder
from hetero_sglang.cache.sizes import ARRIVALS
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.config import development
from hetero_sglang.engine.going import BLOCK, BLOCKS, Going, Places, Round
from hetero_sglang.engine.lazy import Lazy
from hetero_sglang.engine.plan import Prompt
from hetero_sglang.ops.base import Behind, LayerBuffers
from hetero_sglang.ops.step import DecodeStep

_ASKED = 64  # new tokens, at most, that say what a set is made of
_RECORDED = (2, 8, BLOCKS)  # of so many blocks there are graphs
_ROOM = 512  # new tokens that graphs have room for, at most
_COMING = 256  # rows to a block's head that there is room for, at least


@dataclass(frozen=True)
class Recorded:
    """A layer's graphs."""

    read: dict[int, Callable[[], None]]  # by how many blocks they have room for, the fewest first
    take: Callable[[], None]


class Append:
    """Attention of prompts that go on with a working set; every head of the model is compressed."""

    places: Places  # those of graphs, or of a pass
    work: Any  # the step's whose buffers are used

    def __init__(
        self, cache: TieredCache, ops: Any, tables: DeviceTables, layers: list[LayerBuffers], finder: Lazy
    ) -> None:  # fmt: skip
        self.cache, self.ops, self.tables, self.layers, self.finder = cache, ops, tables, layers, finder
        self.rule, self.device = cache.settings.rule, cache.hot.k.device
        self.going: dict[int, Going] = {}  # by request slot
        self.recorded: list[Recorded] = []  # by layer, where there are graphs

    # ---- graphs

    def record(
        self, step: DecodeStep, query_heads: int, dtype: torch.dtype, scales: list[float], context: int
    ) -> None:  # fmt: skip
        """Before any request: every layer's operations become graphs, which run in this step's buffers, for prompts of
        up to `context` tokens; `scales`: of the layers' logits."""
        hot, heads, most = self.cache.hot, self.layers[0].heads.numel(), min(self.cache.settings.append, _ROOM)
        self.work = step.work
        self.places = places = Places(self.tables, self.finder.turns[:1], self._blocks(), most, context)

        def make(heads: int, dim: int) -> torch.Tensor:
            return torch.zeros(most, heads, dim, dtype=dtype, device=self.device)

        self.new = make(query_heads, hot.k.shape[2]), make(heads, hot.k.shape[2]), make(heads, hot.v.shape[2])
        self.out = make(query_heads, hot.v.shape[2])
        recorder, sizes = Recorder(self.device), sorted({min(blocks, places.blocks) for blocks in _RECORDED})
        for layer, scale in enumerate(scales):
            read = {}
            for blocks in sizes:
                work = partial(self._read, layer, places.slots, places.read(places.now, blocks))
                read[blocks] = recorder.record(partial(work, *self.new, self.out, context, scale))
            some = places.read(places.now, 1)
            work = partial(self._take, layer, places.slots, some, some.new, *self.new, context, scale)
            self.recorded.append(Recorded(read, recorder.record(work)))

    def _blocks(self) -> int:
        """Of a round, at most: what comes to each has room."""
        return int(min(BLOCKS, self.work.fitting(1), max(1, ARRIVALS // (_COMING * self.finder.widest))))

    # ---- a pass

    def begin(self, prompts: list[Prompt], step: DecodeStep) -> None:
        """Once per prefill pass; `step`: whose buffers nothing else uses meanwhile."""
        self.work = step.work
        rows = development.changed_rows()
        self.finder.allow(self.work, None if rows is None else development.BLOCK_ROWS * rows)
        for seq in prompts:
            if seq.restores:
                seq.ws.length = seq.prefix
        if not self.recorded:
            self.places = Places(self.tables, self.finder.turns[:1], self._blocks(), 1)
        self.going = self.places.go(prompts, self.work.fitting)

    def attend(
        self, layer: int, seq: Prompt, slots: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """q [n, Hq, D], k [n, H, D], v [n, H, Dv] of the request's new tokens at `slots` [n]; returns [n, Hq, Dv]."""
        going, ws = self.going[seq.ws.slot], seq.ws
        recorded = self.recorded[layer] if self.recorded and going.fits else None
        if seq.restores:
            self._restore(layer, seq, q, scale)
        if recorded:
            for buffer, values in zip(self.new, (q, k, v), strict=True):
                buffer[: seq.count].copy_(values)
            out = self.out[: seq.count]
        else:
            out = q.new_empty(*q.shape[:2], v.shape[2])
        for some in going.rounds:
            if recorded:
                self.places.now.copy_(some.row)
                next(graph for blocks, graph in recorded.read.items() if blocks >= some.starts.numel())()
            else:
                self._read(layer, going.slots, some, q, k, v, out, seq.prefix, scale)
        if recorded:
            recorded.take()
        else:
            self._take(layer, going.slots, going.rounds[-1], slots, q, k, v, seq.length, scale)
        if layer == len(self.layers) - 1:
            ws.length = max(ws.length, seq.length)
            self.cache.counters.appended_tokens += seq.count
            ws.tally.appended_tokens += seq.count
            self.cache.counters.restored_requests += seq.restores
        return out

    def _behind(self, layer: int, numbers: torch.Tensor) -> Behind:
        rule, run = self.rule, self.finder.index[layer].run
        return Behind(numbers, BLOCK, rule.window_of(run), run, rule.sink, rule.ring)

    def _read(
        self, layer: int, slots: torch.Tensor, some: Round, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
        out: torch.Tensor, length: int, scale: float,
    ) -> None:  # fmt: skip
        """What the round's tokens of q attend to, to `out` [n, Hq, Dv]. They look for tokens of the prefix: what else
        the set stands for is nobody's. `length`: how many those are, or may be."""
        asks = q.index_select(0, some.asked).unflatten(0, (-1, BLOCK))  # [B, BLOCK, Hq, D]
        came = self.finder.bring(layer, asks, slots, some.starts, some.step, length, scale, self.work)
        self.ops.append(q, k, v, self.layers[layer], some.step, self._behind(layer, some.numbers), scale, out, came)

    def _take(
        self, layer: int, slots: torch.Tensor, some: Round, new: torch.Tensor, q: torch.Tensor, k: torch.Tensor,
        v: torch.Tensor, length: int, scale: float,
    ) -> None:  # fmt: skip
        """The stores take in the new tokens, at slots `new` [n], the set too, and then what the last of them want;
        `some`: any of its rounds."""
        self.finder.written(layer, new, k)
        self.ops.store(self.layers[layer], new, k, v, resident=False)
        self.ops.keep(k, v, self.layers[layer], some.after, self._behind(layer, some.every))
        asks = q.index_select(0, some.latest)[None]
        self.finder.seek(layer, asks, slots, some.starts, some.after, length, scale, self.work)

    def _restore(self, layer: int, seq: Prompt, q: torch.Tensor, scale: float) -> None:
        """Heads hold what queries q [n, Hq, D] want of the prefix: rows come from the host, as many as they keep."""
        buffers, going, length, rule = self.layers[layer], self.going[seq.ws.slot], seq.prefix, self.rule
        caps, step = seq.ws.caps[buffers.numbers], going.rounds[0].before
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
            some = going.rounds[0]
            found = self.finder.ask(layer, q[None], going.slots, some.starts, some.before, length, scale, self.work)
            full = [number for number, c in enumerate(which) if caps[c] < length]
            if full:
                runs[:] = found[full].mean(0)  # [U]
                runs[[which[number] for number in full]] = found[full]
        return runs
