"""Prefill and decode over the two tiers, in torch. Any device, any number of layers and heads."""

from __future__ import annotations

import torch

from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config.layout import LayerLayout
from hetero_sglang.engine.lazy_step import LazyStep
from hetero_sglang.engine.plan import Plan, Sequence
from hetero_sglang.ops.reference.attention import decode_exact, decode_grouped, prefill_attention, prefill_exact


class TorchEngine:
    """Reads and writes the cache's tiers for one layer at a time."""

    def __init__(self, cache: TieredCache) -> None:
        self.cache = cache
        self.settings = cache.settings
        self.lazy = LazyStep(cache) if cache.index else None

    def write(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store new tokens in both tiers: k [n, H, D], v [n, H, Dv] at token slots [n]."""
        spec = self.settings.layout.layers[layer]
        if spec.resident:
            self.cache.resident.write(layer, slots, k[:, spec.resident_index], v[:, spec.resident_index])
        if spec.compressed:
            self.cache.host.write(
                layer, slots.cpu(), k[:, spec.compressed_index].cpu(), v[:, spec.compressed_index].cpu()
            )
            if self.lazy:
                self.lazy.write(layer, slots, k[:, spec.compressed_index])

    def extend(
        self, layer: int, plan: Plan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Exact prefill. q [n, Hq, D], k [n, H, D], v [n, H, Dv] of all requests in turn; returns [n, Hq, Dv]."""
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        for seq in plan.sequences:
            rows = slice(seq.start, seq.start + seq.count)
            keys, values = self._whole(layer, seq, k[rows], v[rows])
            attend = prefill_exact if seq.ws.exact(seq.ws.final) else prefill_attention
            out[rows] = attend(q[rows], keys, values, scale)
            self._settle(layer, seq, q[rows], keys, values, scale)
        return out

    def _whole(self, layer: int, seq: Sequence, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K [L, H, D] and V [L, H, Dv] of every head: the prefix from both tiers, then the new tokens."""
        if seq.prefix == 0:
            return k, v
        spec = self.settings.layout.layers[layer]
        slots = seq.slots[: seq.prefix]
        keys = k.new_empty(seq.length, *k.shape[1:])
        values = v.new_empty(seq.length, *v.shape[1:])
        keys[seq.prefix :], values[seq.prefix :] = k, v
        if spec.resident:
            kr, vr = self.cache.resident.read(layer, slots.to(k.device), seq.run)
            keys[: seq.prefix, spec.resident_index], values[: seq.prefix, spec.resident_index] = kr, vr
        if spec.compressed:
            kc, vc = self.cache.host.read(layer, slots).split((k.shape[-1], v.shape[-1]), -1)
            keys[: seq.prefix, spec.compressed_index] = kc.to(k.device)
            values[: seq.prefix, spec.compressed_index] = vc.to(v.device)
        return keys, values

    def _settle(
        self, layer: int, seq: Sequence, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
    ) -> None:
        """At prefill end every compressed head gets its working set; before that, only the last queries are kept."""
        spec = self.settings.layout.layers[layer]
        if not spec.compressed:
            return
        ws, observe = seq.ws, self.settings.observe
        if layer in ws.tail:
            q = torch.cat((ws.tail.pop(layer), q))
        q = q[-observe:]
        if not seq.last:
            ws.tail[layer] = q.clone()
            return
        queries = q.unflatten(1, (keys.shape[1], q.shape[1] // keys.shape[1]))  # [W, H, G, D]; W may be 0
        heads = list(spec.compressed)
        full = [i for i in range(len(heads)) if ws.caps[spec.first + i] < seq.length]
        scores = keys.new_empty(len(heads), 0)
        if full or (ws.indexed and seq.length):
            scores = self.settings.policy.scores(queries[:, heads], keys[:, heads], scale)  # [C, L]
        for i in set(range(len(heads))).difference(full):
            whole = torch.arange(seq.length)
            self._place(ws.flat(spec.first + i, whole), whole, keys[:, heads[i]], values[:, heads[i]])
        self._choose(ws, spec, full, scores, keys, values)
        if self.settings.chooses_each_step:
            self.cache.chooser.begin(ws, layer, keys[:, heads], scores)

    def _choose(
        self, ws: WorkingSet, spec: LayerLayout, full: list[int], scores: torch.Tensor, keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:  # fmt: skip
        """The rows of heads that cannot keep them all, as the policy picks them."""
        if not full:
            return
        length, rule = keys.shape[0], self.settings.rule
        # One ring for all: a full head's cap is above the window; where rings grow with caps, nothing is picked.
        ring = rule.ring(ws.caps[spec.first + full[0]])
        counts = [ws.selected_rows(spec.first + i).numel() for i in full]
        high = length - ring
        if self.lazy:
            picked = list(self.lazy.pick(scores[full], counts[0], rule.sink, high))
        else:
            picked = self.settings.policy.pick(scores[full], counts, rule.sink, high)
        for i, chosen in zip(full, picked, strict=True):
            number, head = spec.first + i, spec.compressed[i]
            rows, positions = ws.layout_of(number, length, chosen.cpu())
            flat = ws.flat(number, rows)
            self._place(flat, positions, keys[:, head], values[:, head])
            if self.lazy:
                self.cache.hot.used.view(-1)[flat] = self.lazy.first_use(scores[i : i + 1])[0, positions]
            else:
                self.cache.hot.score.view(-1)[flat] = scores[i, positions]

    def _place(self, flat: torch.Tensor, positions: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        self.cache.hot.write(flat, k[positions], v[positions])
        self.cache.hot.position.view(-1)[flat] = positions.to(k.device, torch.int32)
        self.cache.hot.score.view(-1)[flat] = 0.0

    def decode(
        self, layer: int, plan: Plan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """One token per request over its working sets. q [B, Hq, D], k [B, H, D], v [B, H, Dv] -> [B, Hq, Dv]."""
        spec, hot = self.settings.layout.layers[layer], self.cache.hot
        heads = k.shape[1]
        grouped = q.unflatten(1, (heads, q.shape[1] // heads))  # [B, H, G, D]
        out = q.new_empty(*grouped.shape[:-1], v.shape[-1])
        numbers = slice(spec.first, spec.first + len(spec.compressed))
        if spec.compressed:
            assert plan.rows is not None
            rows = plan.rows[:, numbers].reshape(-1)
            hot.write(rows, k[:, spec.compressed_index].flatten(0, 1), v[:, spec.compressed_index].flatten(0, 1))
        for b, seq in enumerate(plan.sequences):
            if self.lazy:
                self.lazy.step(seq.ws, layer, grouped[b, spec.compressed_index], scale)
            if self.settings.chooses_each_step and spec.compressed:
                self.cache.chooser.step(seq.ws, layer, grouped[b, spec.compressed_index], scale)
            attend = decode_exact if seq.exact else decode_grouped
            if spec.resident:
                index = spec.resident_index
                kr, vr = self.cache.resident.read(layer, seq.slots.to(k.device), seq.run)
                out[b, index] = attend(grouped[b, index], kr, vr, scale)
                if seq.looks:
                    others = grouped[b, spec.compressed_index]
                    self.cache.monitor.look(seq.ws, layer, grouped[b, index], kr, others, scale)
            for i, head in enumerate(spec.compressed):
                number = spec.first + i
                count = min(seq.ws.caps[number], seq.length)
                kh, vh = hot.read(seq.ws.tables[number], seq.ws.runs[number], count)
                out[b, head] = attend(grouped[b, head][None], kh[:, None], vh[:, None], scale)[0]
            if seq.looks and spec.compressed:
                self.cache.monitor.refresh_anchors(seq.ws, layer, grouped[b, spec.compressed_index], scale)
        return out.flatten(1, 2)
