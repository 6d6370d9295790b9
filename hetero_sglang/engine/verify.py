"""Verification of draft tokens: several new tokens of each request in one pass, of which it keeps some.

The first token of each is sampled already and stays: for it the pass is a decode step. The others, drafts, attend to
what the step leaves, to what of their own they want beside it, and to the drafts before them. They write nothing but
scratch: no tier, no working set and no index knows them until `accept` says which stay, and then those are written as
if steps had."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from hetero_sglang.cache.lanes import Recorder, mark, upload
from hetero_sglang.cache.narrow import narrowed
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.engine.finder import Finder
from hetero_sglang.ops.base import Drafts, LayerBuffers, StepTables
from hetero_sglang.ops.step import LENGTH, DecodeStep
from hetero_sglang.transfer.write_back import WriteBack

MOST = 64  # tokens of a request in a verification: each draft is a bit of a number
_NO_TOKEN = 0  # SGLang's own slot for padding
_RECORDED = (1, 4, 16, 64)  # for so many requests there are graphs, and one for all


class Stayed:
    """How many draft tokens have stayed, counted on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.counted = torch.zeros(1, dtype=torch.int64, device=device)
        self._told = torch.zeros(1, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._known, self._read = 0, mark(device)

    def take(self) -> int:
        """How many more are known to have, as of when it was last asked; waits for nothing."""
        if not self._read.passed:
            return 0
        if self.device.type == "cpu":
            self._told.copy_(self.counted)
        more = int(self._told) - self._known
        self._known += more
        if self.device.type == "cuda":
            self._told.copy_(self.counted, non_blocking=True)
            self._read = mark(self.device)
        return more


class Verification:
    """Buffers for passes of up to `first.batch` requests with `each` drafts, at addresses that graphs keep."""

    tables: StepTables  # of the pass's drafts
    step_tables: StepTables  # of its first tokens

    def __init__(
        self, cache: TieredCache, ops: Any, layers: list[LayerBuffers], finder: Finder | None, write_back: WriteBack,
        first: DecodeStep, make: Callable[[DecodeStep, int], DecodeStep], each: int, dtype: torch.dtype, stayed: Stayed,
    ) -> None:  # fmt: skip
        """`first`: of the first tokens; `make`: a step of so many tokens of its requests; `dtype`: of queries."""
        self.stayed = stayed
        self.cache, self.ops, self.layers, self.finder, self.write_back = cache, ops, layers, finder, write_back
        self.first, self.each, self.batch = first, each, first.batch
        self.step = make(first, first.batch * each)
        hot, rows, layout = cache.hot, first.batch * each, cache.settings.layout.layers
        heads, device = len(layout[0].resident) + len(layout[0].compressed), hot.k.device
        self.k = torch.zeros(len(layers), rows, heads, hot.k.shape[-1], dtype=dtype, device=device)
        self.v = torch.zeros(len(layers), rows, heads, hot.v.shape[-1], dtype=dtype, device=device)
        self.seen = torch.zeros(rows, dtype=torch.int64, device=device)
        self.bits = torch.ones(each, dtype=torch.int64, device=device) << torch.arange(each, device=device)
        self.limit = torch.zeros(first.batch, dtype=torch.int32, device=device)
        self.moved = torch.zeros(2, first.batch * (each + 1), dtype=torch.int64, device=device)
        self.recorded: dict[int, Callable[[], None]] = {}  # by how many requests they are for, the fewest first
        self.slots = torch.zeros(first.batch * (each + 1), dtype=torch.int64, device=device)

    def begin(self, limits: Sequence[int], slots: torch.Tensor, tree: torch.Tensor) -> None:
        """Before a pass of B requests that may have so many tokens: slots [B * (each + 1)] of their new ones in turn,
        and tree [B, each + 1, each + 1] bool: whether one attends to another."""
        count = len(limits)
        self.limit[:count] = upload(torch.tensor(limits, dtype=torch.int32), self.limit.device)
        self.slots[: slots.numel()] = slots
        self.slots[slots.numel() :] = _NO_TOKEN
        self.cache.slots_taken(slots.view(-1, self.each + 1)[:, 0])
        self.cache.counters.draft_tokens += count * self.each
        self.seen[: count * self.each] = (tree[:, 1:, 1:] * self.bits).sum(-1).flatten()
        if self.finder and count:
            self.finder.begin(self.step, (), ())

    def guess(self, width: int) -> None:
        """Once `first` has been filled with the tokens that there are: all of `each` new ones are drafts, none was
        said, and nothing of them stays."""
        self.seen[:] = ((self.bits << 1) - 1).repeat(self.batch)  # each sees those before it, and itself
        self.plan(width)
        if self.finder:
            self.finder.prepare(self.step)

    def plan(self, width: int) -> None:
        """Recorded in the graph: as of a step."""
        self.step_tables = self.first.plan(width)
        self.tables = self.step.follow(self.step_tables, self.each)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """Drafts q [B, each, Hq, D], k [B, each, H, D], v [B, each, H, Dv], once the layer has run its step; returns
        [B, each, Hq, Dv]."""
        rows, stored = q.shape[0] * self.each, self.cache.hot.k.dtype
        mine = self.k[layer, :rows], self.v[layer, :rows]
        for kept, new in zip(mine, (k, v), strict=True):
            kept.unflatten(0, (-1, self.each)).copy_(new)
        if stored.itemsize == 1:  # they count as they will be stored
            mine = narrowed(mine[0], stored).to(q.dtype), narrowed(mine[1], stored).to(q.dtype)
        queries, tables = q.flatten(0, 1), self.tables
        came = self.finder.glance(layer, self.step, tables, queries, scale) if self.finder else None
        if came is not None:
            came.there.hold(q.device)
        drafts = Drafts(*mine, self.seen[:rows], self.each)
        out = self.step.kernel.attend(layer, queries, self.layers[layer], tables, scale, True, came, drafts)
        return out.unflatten(0, (-1, self.each))

    def record(self, recorder: Recorder) -> None:
        """Once graphs of passes have been made: what follows one becomes graphs too, of a few widths, as a graph takes
        as long for one request as for all that it is for."""
        for width in sorted({min(width, self.batch) for width in (*_RECORDED, self.batch)}):
            self.recorded[width] = recorder.record(partial(self._keep, width))

    def accept(self, to: torch.Tensor, of: torch.Tensor) -> None:
        """After the pass: the tokens at slots `of` stay, at slots `to` [B * (each + 1)], a request's in order from its
        first slot on; 0: none. Nothing waits for it."""
        if not self.each:
            return
        self.moved[:, : to.numel()] = torch.stack((to, of))
        self.moved[:, to.numel() :] = _NO_TOKEN
        self.write_back.hold()  # a slot's last owner's row, too, may have been on its way
        count = to.numel() // (self.each + 1)
        keep = next((graph for width, graph in self.recorded.items() if width >= count), None)
        if keep:
            keep()
        else:
            self._keep(count)

    def _keep(self, width: int) -> None:
        """What `accept` was told of the first `width` requests is written to both tiers, rings and indexes."""
        each, count = self.each, width * (self.each + 1)
        slots, (to, of) = self.slots[:count], self.moved[:, :count]
        place = torch.full((count + 1,), -1, device=slots.device)
        target = torch.where(of != _NO_TOKEN, (to[:, None] == slots).int().argmax(1), count)
        place[target] = (of[:, None] == slots).int().argmax(1)
        found = place[:count].view(-1, each + 1)[:, 1:]  # [B, each], where each new token was in the pass
        length = self.first.inputs[LENGTH, :width, None]  # [B, 1], of the first token
        stays = (found >= 0) & (length > 0)
        length = length + torch.arange(1, each + 1, device=slots.device)  # and of those behind it
        held = stays & (length <= self.limit[:width, None])  # others are beyond the request's end
        self.stayed.counted += held.sum()
        row = (found // (each + 1) * each + found % (each + 1) - 1).clamp(min=0).flatten()
        tables = self.first.tables_of(width)
        kept = replace(
            tables,
            length=torch.where(held, length, 0).flatten().int(),
            cap=tables.cap.repeat_interleave(each, 0),
            page_start=tables.page_start.repeat_interleave(each, 0),
            request=tables.request.repeat_interleave(each, 0),
        )
        new = torch.where(stays, slots.view(-1, each + 1)[:, 1:], _NO_TOKEN).flatten()
        self.cache.slots_taken(new)
        self.cache.written[_NO_TOKEN : _NO_TOKEN + 1].fill_(False)
        rule = self.cache.settings.rule
        for layer, buffers in enumerate(self.layers):  # one at a time, which share their room in a graph
            k, v = self.k[layer].index_select(0, row), self.v[layer].index_select(0, row)
            self.ops.store(buffers, new, k, v, step=kept, sink=rule.sink, ring=rule.ring)
            if self.finder:
                self.finder.written(layer, new, k)
