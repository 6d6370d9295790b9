"""Policies that select anew at every step: their indexes, and the rows that a step must have before it attends.

The rows are read here and now, not asked of the worker: a step that waits gains nothing by asking another process.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config.settings import Settings


@dataclass
class Units:
    """What one layer's index covers: `tokens` [C, U * span] positions, ascending; the next unit begins at `end`."""

    tokens: torch.Tensor
    end: int

    @property
    def count(self) -> int:
        return self.tokens.shape[1]


class StepChooser:
    """Builds, extends and asks the policy's index. All compressed heads of a layer are alike (no roles)."""

    def __init__(self, settings: Settings, host: HostStore, hot: HotPool, counters: Counters) -> None:
        self.settings, self.policy, self.index = settings, settings.policy, settings.policy.index
        self.host, self.hot, self.counters = host, hot, counters

    def begin(self, ws: WorkingSet, layer: int, k: torch.Tensor, scores: torch.Tensor) -> None:
        """At prefill end: index the prompt's tokens; k [L, C, D] and scores [C, L] of the layer's compressed heads."""
        spec, length = self.settings.layout.layers[layer], k.shape[0]
        if self.index is None or not spec.compressed or not ws.index[spec.first].numel():
            return
        span, heads = self.index.span, k.shape[1]
        count = int(spec.fractions[0] * ws.final)
        tokens = self.policy.candidates(scores, count, self.settings.rule.window)
        end = length
        if tokens is None:
            end = length // span * span
            tokens = torch.arange(end, device=k.device).expand(heads, -1)
        ws.units[layer] = Units(tokens, end)
        keys = k.transpose(0, 1).gather(1, tokens[..., None].expand(-1, -1, k.shape[2]))  # [C, U * span, D]
        self._write(ws, layer, 0, keys)

    def step(self, ws: WorkingSet, layer: int, q: torch.Tensor, scale: float) -> None:
        """Before a decode step attends: q [C, G, D] of the layer's compressed heads; the new token is in its row."""
        spec = self.settings.layout.layers[layer]
        if layer not in ws.units:
            return
        length = ws.slots.numel()
        self._extend(ws, layer, length)
        every = self.settings.monitor_interval
        if (length - ws.prompt) % every or not ws.has_choice(spec.first):
            return
        scores = self._scores(ws, layer, q, scale, length)
        rows = torch.stack([ws.flat(n, ws.selected_rows(n)) for n in self._numbers(layer)])  # [C, n]
        low, high = self.settings.rule.sink, length - int(ws.ring[spec.first])
        chosen = torch.stack(self.policy.pick(scores, [rows.shape[1]] * len(rows), low, high))  # [C, n]
        self._fetch(ws, layer, rows, chosen, length)

    def _numbers(self, layer: int) -> range:
        spec = self.settings.layout.layers[layer]
        return range(spec.first, spec.first + len(spec.compressed))

    def _rows(self, ws: WorkingSet, layer: int, first: int, last: int) -> torch.Tensor:
        """Flat hot rows [C, n] of index rows [first, last)."""
        row = torch.arange(first, last)
        return torch.stack([self.hot.rows(ws.index[n], row) for n in self._numbers(layer)])

    def _write(self, ws: WorkingSet, layer: int, first_unit: int, keys: torch.Tensor) -> None:
        """Build units from keys [C, U * span, D] and store them from unit `first_unit` on."""
        assert self.index is not None
        heads, count, dim = keys.shape
        units = count // self.index.span
        if units == 0:
            return
        k, v = self.index.build(keys.view(heads, units, self.index.span, dim), self.hot.v.shape[-1])
        rows = self._rows(ws, layer, first_unit * self.index.rows, (first_unit + units) * self.index.rows)
        self.hot.write(rows.flatten(), k.flatten(0, 2), v.flatten(0, 2))

    def _extend(self, ws: WorkingSet, layer: int, length: int) -> None:
        """A unit for every `span` tokens that decoding has completed; they are still in the ring."""
        assert self.index is not None
        units, span = ws.units[layer], self.index.span
        first = self._numbers(layer)[0]
        room = ws.index[first].numel() * self.hot.page_size // self.index.rows
        while length - units.end >= span and units.count // span < room:
            numbers = slice(first, first + len(units.tokens))
            fresh = range(units.end, units.end + span)
            rows = torch.stack([ws.rows_of_token(token)[numbers] for token in fresh], 1)  # [C, span]
            keys = self.hot.k.view(-1, self.hot.k.shape[-1])[rows]  # [C, span, D]
            self._write(ws, layer, units.count // span, keys)
            tokens = torch.tensor(fresh, device=units.tokens.device).expand(len(units.tokens), -1)
            units.tokens = torch.cat((units.tokens, tokens), 1)
            units.end += span

    def _scores(self, ws: WorkingSet, layer: int, q: torch.Tensor, scale: float, length: int) -> torch.Tensor:
        """Scores [C, L] float32 by the index; what it does not cover comes last."""
        assert self.index is not None
        units = ws.units[layer]
        rows = self._rows(ws, layer, 0, units.count // self.index.span * self.index.rows)
        k, v = (store.view(-1, store.shape[-1])[rows] for store in (self.hot.k, self.hot.v))
        shape = (len(rows), -1, self.index.rows)
        found = self.index.scores(q, k.unflatten(1, shape[1:]), v.unflatten(1, shape[1:]), scale)  # [C, U * span]
        scores = torch.full((len(rows), length), float("-inf"), device=found.device)
        return scores.scatter_(1, units.tokens, found.float())

    def _fetch(self, ws: WorkingSet, layer: int, rows: torch.Tensor, chosen: torch.Tensor, length: int) -> None:
        """Put the chosen tokens [C, n] where `rows` [C, n] hold others."""
        chosen = chosen.cpu()
        held = self.hot.position.view(-1)[rows].long().cpu()
        wanted = torch.zeros(len(rows), length, dtype=torch.bool).scatter_(1, chosen, True)
        there = torch.zeros_like(wanted).scatter_(1, held, True)
        victims = rows[~wanted.gather(1, held)]  # both in order of heads, as many of each head
        missing = ~there.gather(1, chosen)
        positions, head = chosen[missing], missing.nonzero()[:, 0]
        if not positions.numel():
            return
        slots = ws.slots[positions]
        k, v = self.host.read_heads(layer, slots, head).split((self.hot.k.shape[-1], self.hot.v.shape[-1]), -1)
        self.hot.write(victims, k.to(self.hot.k.device), v.to(self.hot.v.device))
        self.hot.position.view(-1)[victims] = positions.to(self.hot.position.device, torch.int32)
        self.counters.fetched_rows += positions.numel()
        self.counters.fetched_bytes += sum(t.numel() * t.element_size() for t in (k, v))
