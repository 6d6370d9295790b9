"""A prompt's new tokens over a working set: the one that the turn before has left, or one made of their prefix's index.

They read like decode steps. Heads that have a key index look for what these tokens want, as in a step with many
queries; rows that come are seated before the heads attend, to what they hold and to the new tokens before each. Then
the ring goes on to the newest."""

from dataclasses import dataclass
from typing import Any

import torch

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.hot_pool import PINNED
from hetero_sglang.cache.lanes import upload
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.engine.lazy import Lazy
from hetero_sglang.engine.plan import Prompt
from hetero_sglang.ops.base import Behind, LayerBuffers, StepTables
from hetero_sglang.ops.step import DecodeStep
from hetero_sglang.transfer.write_back import WriteBack

_ASKED = 64  # of the new tokens, evenly spread, that say which rows they want
_LATEST = 8  # of the last ones, that say which of the new tokens are held beyond the window


@dataclass(frozen=True)
class Going:
    """A request's set as the device sees it; all int32 there."""

    slots: torch.Tensor  # [length], of all its tokens
    before: StepTables  # of a step of it alone, that sees what the set stands for
    after: StepTables  # and one that sees the new tokens too
    asked: torch.Tensor  # [n] int64, which of the new tokens look for rows first


class Append:
    """Attention of prompts that go on with a working set; every head of the model is compressed."""

    def __init__(
        self, cache: TieredCache, ops: Any, tables: DeviceTables, layers: list[LayerBuffers], finder: Lazy,
        write_back: WriteBack,
    ) -> None:  # fmt: skip
        self.cache, self.ops, self.tables, self.layers, self.finder = cache, ops, tables, layers, finder
        self.write_back, self.rule, self.device = write_back, cache.settings.rule, cache.hot.k.device
        self.going: dict[int, Going] = {}  # by request slot

    def begin(self, prompts: list[Prompt], step: DecodeStep) -> None:
        """Once per prefill pass; `step`: whose buffers nothing else uses meanwhile."""
        self.work = step.work
        self.finder.allow(self.work, None)
        for seq in prompts:
            if seq.restores:
                seq.ws.length = seq.prefix
            else:
                self._age(seq.ws)
        self.going = {seq.ws.slot: self._going(seq) for seq in prompts}

    def _age(self, ws: WorkingSet) -> None:
        """What the last step wanted may go too; what is pinned stays."""
        used, pages = self.cache.hot.used, upload(ws.pages, self.device)
        rows = used[pages]  # [pages, page_size]
        used[pages] = torch.where((rows >= ws.length) & (rows < PINNED // 2), ws.length - 1, rows)

    def _going(self, seq: Prompt) -> Going:
        lengths = upload(torch.tensor([[seq.ws.length], [seq.length]], dtype=torch.int32), self.device)
        before, after = (StepTables.alone(self.tables, seq.ws.slot, x, self.finder.turns[:1]) for x in lengths)
        asked = torch.linspace(0, seq.count - 1, min(_ASKED, seq.count)).long()
        return Going(upload(seq.slots.int(), self.device), before, after, upload(asked, self.device))

    def attend(
        self, layer: int, seq: Prompt, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """q [n, Hq, D], k [n, H, D], v [n, H, Dv] of the request's new tokens; returns [n, Hq, Dv]."""
        ws, rule, buffers, going = seq.ws, self.rule, self.layers[layer], self.going[seq.ws.slot]
        run = self.finder.index[layer].run
        begins = (ws.length - rule.window_of(run)) // run * run
        behind = Behind(seq.prefix, ws.length, begins, rule.sink, rule.ring)
        if seq.restores:
            self._restore(layer, seq, q[going.asked], scale)
        else:
            # More than a step wants, as others chose the rest.
            self.finder.seek(layer, q[going.asked], going.slots, going.before, ws.length, scale, self.work, part=1)
        out = self.ops.append(q, k, v, buffers, going.before, behind, scale)
        self.ops.keep(k, v, buffers, going.before, behind)
        if seq.count > rule.window:
            self.write_back.hold()  # rows of this pass are looked for in the host store
            self.finder.seek(layer, q[-_LATEST:], going.slots, going.after, seq.length, scale, self.work)
        if layer == len(self.layers) - 1:
            ws.length = max(ws.length, seq.length)
            self.cache.counters.appended_tokens += seq.count
            self.cache.counters.restored_requests += seq.restores
        return out

    def _restore(self, layer: int, seq: Prompt, q: torch.Tensor, scale: float) -> None:
        """Heads hold what queries q [n, Hq, D] want of the prefix: rows come from the host, as many as they keep."""
        buffers, going, length, rule = self.layers[layer], self.going[seq.ws.slot], seq.prefix, self.rule
        caps, step = seq.ws.caps[buffers.numbers], going.before
        runs = self._wanted(layer, caps, q, going, length, scale)
        turning = rule.turning(min(caps))
        counts = [cap - rule.sink - turning if cap < length else 0 for cap in caps]
        selected, used = self.finder.best(layer, runs, length, counts, rule.sink), self.finder.used(layer, runs, length)
        tables = step.cap[0, buffers.numbers], step.page_start[0, buffers.numbers], step.page_list
        self.ops.restore(buffers, going.slots, length, selected.int(), used, *tables, max(caps), rule.sink, rule.ring)

    def _wanted(
        self, layer: int, caps: list[int], q: torch.Tensor, going: Going, length: int, scale: float
    ) -> torch.Tensor:
        """Scores [C, U] of runs. Heads without an index go by the others of their layer, or by what is recent."""
        mine = self.finder.index[layer]
        count = (length - 1) // mine.run
        which = self.finder.which[layer]
        runs = torch.arange(count, dtype=torch.float32, device=self.device).div(count).repeat(len(caps), 1)
        if which:
            found = self.finder.ask(layer, q, going.slots, going.before, length, scale, self.work)  # [I, U]
            full = [number for number, c in enumerate(which) if caps[c] < length]
            if full:
                runs[:] = found[full].mean(0)
                runs[[which[number] for number in full]] = found[full]
        return runs
