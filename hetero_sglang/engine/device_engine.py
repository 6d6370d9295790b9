"""Prefill and decode over the two tiers on a CUDA device: what TorchEngine does, without waiting for anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.lanes import mark, upload
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.engine.device_lazy import DeviceLazy
from hetero_sglang.engine.device_monitor import DeviceMonitor
from hetero_sglang.engine.plan import Plan, Sequence
from hetero_sglang.engine.prefill import RaggedPrefill
from hetero_sglang.ops.decode_kernel import decode_kernel
from hetero_sglang.ops.step import DecodeStep
from hetero_sglang.ops.triton.fill import fill
from hetero_sglang.ops.triton.store import LayerBuffers, StepTables, rows_apart, store
from hetero_sglang.selection.batched import choose
from hetero_sglang.transfer.device_fetcher import DeviceFetcher
from hetero_sglang.transfer.prefix_loader import PrefixLoader
from hetero_sglang.transfer.write_back import WriteBack


@dataclass(frozen=True)
class LayerHeads:
    """Head numbers of one layer as index tensors on the device."""

    resident: torch.Tensor  # [R] int64
    compressed: torch.Tensor  # [C] int64
    compressed32: torch.Tensor


class DeviceEngine:
    """Owns the device's view of the working sets, and the streams and events of prefill's copies.

    `requests`: request slots; `context`: the longest request, in tokens.
    """

    def __init__(self, cache: TieredCache, requests: int, context: int, query_heads: int) -> None:
        self.cache, self.settings = cache, cache.settings
        layout, hot, host = self.settings.layout, cache.hot, cache.host
        self.device = device = hot.k.device
        self.context, self.query_heads = context, query_heads
        self.tables = DeviceTables(requests, layout.num_compressed, hot.pages, device)
        self.heads = [
            LayerHeads(
                x.resident_index.to(device),
                x.compressed_index.to(device),
                x.compressed_index.to(device, torch.int32),
            )
            for x in layout.layers
        ]
        self.layers = [self._layer(index) for index in range(len(layout.layers))]
        self.counts = [(len(x.resident), len(x.compressed), x.first) for x in layout.layers]
        self.plan: Plan | None = None
        self.unknown: list[int] = []
        self.graph_step: DecodeStep | None = None
        self.eager_step: DecodeStep | None = None
        self.prefill = RaggedPrefill(device)
        self.prefixes = PrefixLoader(host, device)
        self.write_back = WriteBack(host, hot, layout.layers, self.settings.rule.window)
        self.group = query_heads // sum(self.counts[0][:2])
        self.lazy = DeviceLazy(cache, [x.compressed32 for x in self.heads]) if cache.index else None
        self.monitor: DeviceMonitor | None = None
        if self.settings.retrieves and isinstance(cache.fetcher, DeviceFetcher):
            self.monitor = DeviceMonitor(
                self.settings, cache.resident, hot, self.tables, cache.fetcher, cache.counters, self.write_back,
                context, self.group,
            )  # fmt: skip

    def _layer(self, index: int) -> LayerBuffers:
        cache, spec = self.cache, self.settings.layout.layers[index]
        role = torch.empty(len(spec.resident) + len(spec.compressed), dtype=torch.int32)
        role[spec.resident_index] = torch.arange(len(spec.resident), dtype=torch.int32)
        role[spec.compressed_index] = -1 - torch.arange(len(spec.compressed), dtype=torch.int32)
        return LayerBuffers(
            role.to(self.device), cache.resident.k[index], cache.resident.v[index], cache.host.blocks[index],
            cache.hot.k, cache.hot.v, cache.hot.position, cache.hot.score, spec.first,
        )  # fmt: skip

    # ---- prefill

    def begin_unknown(self, counts: list[int]) -> None:
        """A prefill pass of no request of ours (SGLang warms its kernels): counts[i] tokens attend to themselves."""
        self.plan, self.unknown = None, counts

    def begin_extend(self, plan: Plan) -> None:
        """Once per prefill pass: host rows of the prefixes start to move, the attention is planned."""
        self.plan = plan
        self.write_back.send()
        self.write_back.hold()
        prefixes = [s.slots[: s.prefix] for s in plan.sequences if s.prefix]
        slots = torch.cat(prefixes) if prefixes and self.cache.host.nbytes else torch.empty(0, dtype=torch.int64)
        self.prefixes.begin(slots, mark(self.device))
        for seq in plan.sequences:
            if seq.prefix:  # before more rows move: small copies queue behind large ones
                seq.device_slots = upload(seq.slots[: seq.prefix], self.device)

    def extend(
        self, layer: int, slots: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Exact prefill. q [n, Hq, D], k [n, H, D], v [n, H, Dv] of all requests in turn; returns [n, Hq, Dv]."""
        plan = self.plan
        k, v = k.contiguous(), v.contiguous()
        shape = (q.shape[1], k.shape[1], q.shape[2], v.shape[2])
        if plan is None:
            self.prefill.plan(self.unknown, self.unknown, *shape, scale, q.dtype)
            return self.prefill.run(q, k, v)
        if layer == 0:  # before `_whole`: the plan's copy too would queue behind the next layer's rows
            counts, lengths = [s.count for s in plan.sequences], [s.length for s in plan.sequences]
            self.prefill.plan(counts, lengths, *shape, scale, q.dtype)
        self._write(layer, slots, k, v)
        keys, values = self._whole(layer, plan, k, v)
        out = self.prefill.run(q, keys, values)
        start = 0
        for seq in plan.sequences:
            rows = slice(start, start + seq.length)
            self._settle(layer, seq, q[seq.start : seq.start + seq.count], keys[rows], values[rows], scale)
            start += seq.length
        if layer == len(self.layers) - 1:
            self.prefixes.end()
        return out

    def _write(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Resident rows now; host rows beside the computation."""
        store(self.layers[layer], slots, k, v, host=False)
        if self.lazy:
            self.lazy.write(layer, slots, k)
        if self.counts[layer][1]:
            self.write_back.chunk(self.layers[layer], slots, k, v)

    def _whole(self, layer: int, plan: Plan, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K [sum L, H, D] and V [sum L, H, Dv] of all requests in turn: prefix from both tiers, then the new tokens."""
        if not any(s.prefix for s in plan.sequences):
            return k, v
        total = sum(s.length for s in plan.sequences)
        keys, values = k.new_empty(total, *k.shape[1:]), v.new_empty(total, *v.shape[1:])
        resident, compressed, _ = self.counts[layer]
        heads, buffers = self.heads[layer], self.layers[layer]
        if compressed:
            host_k, host_v = self.prefixes.take(layer).split((k.shape[2], v.shape[2]), 2)
        start = taken = 0
        for seq in plan.sequences:
            prefix, rows = seq.prefix, slice(start, start + seq.prefix)
            fresh = slice(seq.start, seq.start + seq.count)
            keys[start + prefix : start + seq.length] = k[fresh]
            values[start + prefix : start + seq.length] = v[fresh]
            if prefix and resident:
                picked = seq.device_slots
                keys[rows].index_copy_(1, heads.resident, buffers.resident_k.index_select(0, picked))
                values[rows].index_copy_(1, heads.resident, buffers.resident_v.index_select(0, picked))
            if prefix and compressed:
                keys[rows].index_copy_(1, heads.compressed, host_k[taken : taken + prefix])
                values[rows].index_copy_(1, heads.compressed, host_v[taken : taken + prefix])
            start, taken = start + seq.length, taken + prefix
        if compressed:
            self.prefixes.done(layer)
        return keys, values

    def _settle(
        self, layer: int, seq: Sequence, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
    ) -> None:
        """At prefill end every compressed head gets its working set; before that, only the last queries are kept."""
        spec, heads = self.settings.layout.layers[layer], self.heads[layer]
        if not spec.compressed:
            return
        ws, observe, rule = seq.ws, self.settings.observe, self.settings.rule
        if layer in ws.tail:
            q = torch.cat((ws.tail.pop(layer), q))
        q = q[-observe:]
        if not seq.last:
            ws.tail[layer] = q.clone()
            return
        caps = ws.caps[spec.first : spec.first + len(spec.compressed)]
        queries = q.unflatten(1, (keys.shape[1], self.group))  # [W, H, G, D]; W may be 0
        full = min(caps) < seq.length
        if full:
            scores = self.settings.policy.scores(queries[:, heads.compressed], keys[:, heads.compressed], scale)
            counts = [max(0, cap - rule.sink - rule.window) if cap < seq.length else 0 for cap in caps]
            if self.lazy:
                selected = self.lazy.pick(scores, counts[0], rule.sink, seq.length - rule.window).int()  # [C, n]
                scores = self.lazy.first_use(scores).view(torch.float32)
            else:
                selected = choose(scores, counts, rule.sink, seq.length - rule.window)  # [C, n]
        else:
            scores = torch.empty(len(caps), 0, dtype=torch.float32, device=self.device)
            selected = torch.empty(len(caps), 0, dtype=torch.int32, device=self.device)
        self.tables.put(seq.slot, ws)
        numbers = slice(spec.first, spec.first + len(caps))
        cap, start = self.tables.cap[seq.slot, numbers], self.tables.page_start[seq.slot, numbers]
        page_list = self.tables.page_list
        args = (heads.compressed32, keys, values, selected, scores, cap, start, page_list, max(caps))
        fill(self.layers[layer], *args, rule.sink, rule.window)

    # ---- decode

    def make_step(self, batch: int, context: int) -> DecodeStep:
        """Buffers for decode batches of up to `batch` requests of up to `context` tokens."""
        k, queries = self.cache.hot.k, None
        if self.monitor:
            queries = k.new_empty(len(self.layers), batch, self.query_heads, k.shape[-1])
        kernel = decode_kernel(self.settings.decode_kernel, self.layers)
        work = self.lazy.workspace(batch, context, self.group) if self.lazy else None
        return DecodeStep(
            self.settings, self.tables, batch, context, self.group, self.cache.hot.v.shape[-1], queries, kernel, work
        )

    def eager(self, width: int, longest: int) -> DecodeStep:
        """Buffers for a step outside any graph; they grow as batches do."""
        step = self.eager_step
        if step is None or step.batch < width or step.context < longest:
            batch = max(width, step.batch if step else 0)
            context = min(self.context, max(2 * longest, step.context if step else 0))
            self.eager_step = step = self.make_step(batch, context)
        return step

    def begin_decode(
        self, step: DecodeStep, requests: list[int], lengths: list[int], width: int, req_to_token: torch.Tensor
    ) -> None:
        """Before a step is run or replayed: update what it reads; `width` - len(requests) rows are padding."""
        self.write_back.send()
        if self.monitor and requests:
            self.monitor.tick()
        known = [self.cache.requests[request] for request in requests]
        for ws, length in zip(known, lengths, strict=True):
            self.cache.make_room(ws, length)
        if any([self.tables.put(ws.slot, ws) for ws in known]):  # their pages may have been another's
            self.write_back.hold()
        step.fill(requests, lengths, width, req_to_token)
        if self.lazy and step.work:
            self.lazy.begin(step.work)
        if requests:
            self.write_back.owe(step, width)
        if self.monitor and requests:
            self.monitor.runs(known, lengths, step.queries, req_to_token)

    def decode(
        self, layer: int, step: DecodeStep, tables: StepTables, slots: torch.Tensor, q: torch.Tensor, k: torch.Tensor,
        v: torch.Tensor, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        """One token per request over its working sets. q [B, Hq, D], k [B, H, D], v [B, H, Dv] -> [B, Hq, Dv]."""
        buffers = self.layers[layer]
        q, k, v = rows_apart(q), rows_apart(k), rows_apart(v)
        saved = None
        if self.monitor:
            assert step.queries is not None  # made for its eyes
            saved, self.monitor.scale = step.queries[layer], scale
        store(buffers, slots, k, v, host=False, step=tables, window=self.settings.rule.window, q=q, saved=saved)
        if self.lazy and step.work:
            self.lazy.write(layer, slots, k)
            self.lazy.ready(layer, step, tables, q, scale)
        return step.kernel.attend(layer, q, buffers, tables, scale, ordered=self.lazy is not None)
