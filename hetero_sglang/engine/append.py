"""A next turn's new tokens over the working set that the turn before has left: they read like decode steps.

Heads that have a key index look for what these tokens want, as in a step with many queries; rows that come are seated
before the heads attend, to what they hold and to the new tokens before each. Then the ring goes on to the newest."""

import torch

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.lanes import upload
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.cache.working_set import WorkingSet, ring_row
from hetero_sglang.engine.lazy import Lazy
from hetero_sglang.engine.plan import Prompt
from hetero_sglang.engine.prefill import RaggedPrefill
from hetero_sglang.ops.base import LayerBuffers, flat_rows
from hetero_sglang.ops.step import DecodeStep
from hetero_sglang.transfer.write_back import WriteBack

_ASKED = 64  # of the new tokens, evenly spread, that say which rows they want
_LATEST = 8  # of the last ones, that say which of the new tokens are held beyond the window


class Append:
    """Attention of prompts that go on with a working set; every head of the model is compressed."""

    def __init__(
        self, cache: TieredCache, tables: DeviceTables, layers: list[LayerBuffers], finder: Lazy,
        prefill: RaggedPrefill, write_back: WriteBack, group: int,
    ) -> None:  # fmt: skip
        self.cache, self.tables, self.layers, self.finder, self.group = cache, tables, layers, finder, group
        self.prefill, self.write_back = RaggedPrefill(cache.hot.k.device, prefill), write_back
        self.rule, self.device = cache.settings.rule, cache.hot.k.device

    def begin(self, step: DecodeStep) -> None:
        """Once per prefill pass: a step whose buffers nothing else uses meanwhile."""
        self.work = step.work

    def attend(
        self, layer: int, seq: Prompt, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """q [n, Hq, D], k [n, H, D], v [n, H, Dv] of the request's new tokens; returns [n, Hq, Dv]."""
        ws, prefix, length = seq.ws, seq.prefix, seq.length
        count = min(_ASKED, seq.count)
        asked = torch.linspace(0, seq.count - 1, count).long().tolist()
        slots = seq.tokens
        self.finder.seek(layer, ws, q[asked], slots, ws.length, scale, self.work)
        out = self._over(layer, seq, q, k, v, scale)
        self._keep(layer, ws, prefix, k, v)
        if seq.count > self.rule.window:
            self.write_back.hold()  # rows of this pass are looked for in the host store
            self.finder.seek(layer, ws, q[-_LATEST:], slots, length, scale, self.work)
        if layer == len(self.layers) - 1:
            ws.length = max(ws.length, length)
            self.cache.counters.appended_tokens += seq.count
        return out

    def _over(
        self, layer: int, seq: Prompt, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Each head's tokens, then the new ones, causally: a ragged batch of one KV head each."""
        buffers, count = self.layers[layer], seq.count
        hot_k, hot_v = (store.view(-1, store.shape[-1]) for store in (buffers.hot_k, buffers.hot_v))
        keys, values, lengths = [], [], []
        for head, rows in zip(buffers.compressed.tolist(), self._rows(layer, seq), strict=True):
            keys += [hot_k[rows], k[:, head]]
            values += [hot_v[rows], v[:, head]]
            lengths.append(rows.numel() + count)
        heads = len(lengths)
        self.prefill.plan(
            [count] * heads, lengths, self.group, 1, q.shape[2], v.shape[2], scale, q.dtype, [False] * heads
        )
        grouped = q.unflatten(1, (-1, self.group))[:, buffers.compressed].transpose(0, 1)  # [C, n, G, D]
        out = self.prefill.run(grouped.flatten(0, 1), torch.cat(keys)[:, None], torch.cat(values)[:, None])
        result = out.new_empty(count, k.shape[1], self.group, v.shape[2])
        result[:, buffers.compressed] = out.unflatten(0, (heads, count)).transpose(0, 1)
        return result.flatten(1, 2)

    def _rows(self, layer: int, seq: Prompt) -> list[torch.Tensor]:
        """Of each compressed head, flat hot rows that hold tokens before the new ones, each token once."""
        ws, prefix, rule = seq.ws, seq.prefix, self.rule
        run = self.finder.index[layer].run
        begins = (ws.length - rule.window_of(run)) // run * run  # of the tokens that no selected run holds
        stale = [*range(max(0, ws.length - rule.ring), begins), *range(prefix, ws.length)]
        found = []
        numbers = self.layers[layer].numbers
        for cap, pages in zip(ws.caps[numbers], ws.tables[numbers], strict=True):
            there = torch.ones(min(cap, prefix), dtype=torch.bool)
            if stale and cap < ws.length:
                rows = ring_row(torch.tensor(stale), cap, rule.sink, rule.ring)
                there[rows[rows < there.numel()]] = False
            row = there.nonzero()[:, 0]
            found.append(upload(flat_rows(pages, 0, row, self.cache.hot.page_size), self.device))
        return found

    def _keep(self, layer: int, ws: WorkingSet, prefix: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """The new tokens k [n, H, D], v [n, H, Dv] take the rows of those that leave; of two in a row, the later."""
        buffers, rule, hot = self.layers[layer], self.rule, self.cache.hot
        token = torch.arange(prefix, prefix + len(k))  # [n]
        cap = ws.cap[buffers.numbers, None]  # [C, 1]
        turning = (cap - rule.sink).clamp(1, rule.ring)
        stays = (token < cap - turning) | (token >= prefix + len(k) - turning)  # [C, n]
        row = ring_row(token, cap, rule.sink, rule.ring)
        head, new = stays.nonzero().unbind(1)
        pages = ws.tables[buffers.numbers]
        starts = torch.tensor([0, *(page.numel() for page in pages[:-1])]).cumsum(0)
        flat = flat_rows(torch.cat(pages), starts[head], row[head, new], hot.page_size)
        flat, head, new = (upload(each, self.device) for each in (flat, head, new))
        hot.write(flat, k[new, buffers.compressed[head]], v[new, buffers.compressed[head]])
        hot.position.view(-1)[flat] = (new + prefix).int()
        hot.score.view(-1)[flat] = 0.0
