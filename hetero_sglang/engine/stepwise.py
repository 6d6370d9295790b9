"""Policies that choose anew at every step by an index of their own, which lies in hot rows."""

from typing import Any

import torch

from hetero_sglang.cache.working_set import ring_row
from hetero_sglang.engine.finder import Finder, pieces
from hetero_sglang.engine.plan import Prompt
from hetero_sglang.ops.base import StepTables
from hetero_sglang.ops.step import LENGTH, PROMPT, ROOM, UNITS, DecodeStep
from hetero_sglang.policy.base import Index
from hetero_sglang.selection import top

_BYTES = 64  # that choosing takes at a time for each token of a head


class Stepwise(Finder):
    """All compressed heads of a layer are alike (no roles). A unit's first row has its first token for a position.

    Everything is torch of fixed shapes, so a graph may record it; a graph looks at as many tokens as its context has.
    """

    @property
    def index(self) -> Index:
        assert self.policy.index is not None
        return self.policy.index

    def workspace(self, batch: int, context: int, other: Any = None) -> Any:
        """Any head may change all of its rows."""
        splits = self.ops.Workspace.splits_of(batch * self.widest, context)
        self.room = max(self.room, -(-self._most(context) // splits))
        return super().workspace(batch, context, other)

    def fixed(self, recorded: bool) -> dict[str, str]:
        why = "decode steps are CUDA graphs, recorded with its value at start"
        graphs = {"monitor_interval": why, "retrieval": why} if recorded else {}
        return {"drift_threshold": "the policy has no pivots that watch for drift", **graphs}

    def prompted(self, layer: int, prompt: Prompt, keys: torch.Tensor, scores: torch.Tensor) -> None:
        """Index the prompt's tokens."""
        buffers, ws, span = self.layers[layer], prompt.ws, self.index.span
        if not ws.table.counts[ws.heads + buffers.first]:
            return
        heads, length = scores.shape
        count = int(self.settings.layout.layers[layer].fractions[0] * ws.final)
        firsts = self.policy.candidates(scores, count, self.settings.rule.window)
        if firsts is None:
            firsts = (torch.arange(length // span, device=keys.device) * span).expand(heads, -1)
        ws.units = firsts.shape[1] - length // span
        tokens = (firsts[..., None] + torch.arange(span, device=keys.device)).flatten(1)  # [C, U * span]
        units = keys.transpose(0, 1).gather(1, tokens[..., None].expand(-1, -1, keys.shape[2]))
        rows = torch.arange(firsts.shape[1] * self.index.rows, device=keys.device)
        start = self.tables.index_start[ws.slot, buffers.numbers, None].long()
        self._write(self._flat(start, rows), units.unflatten(1, (-1, span)), firsts)

    def _flat(self, start: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Flat hot rows of rows `row` of page lists that begin at `start`."""
        page, listed = self.cache.hot.page_size, self.tables.page_list
        at = (start + row // page).clamp(max=listed.numel() - 1)
        return listed[at].long() * page + row % page

    def _write(
        self, rows: torch.Tensor, keys: torch.Tensor, firsts: torch.Tensor, wanted: torch.Tensor | None = None
    ) -> None:
        """Units of keys [N, U, span, D] with first tokens [N, U] to flat rows [N, U * R]; of units `wanted` [N, U]."""
        hot = self.cache.hot
        k, v = self.index.build(keys, hot.v.shape[-1])
        places = rows.unflatten(1, (-1, self.index.rows))[..., 0]
        for store, values, at in (
            (hot.k.view(-1, k.shape[-1]), k.flatten(1, 2), rows),
            (hot.v.view(-1, v.shape[-1]), v.flatten(1, 2), rows),
            (hot.position.view(-1), firsts.int(), places),
        ):
            if wanted is not None:
                at = torch.where(wanted.repeat_interleave(at.shape[1] // wanted.shape[1], 1), at, hot.spare)
            store[at] = values

    def find(self, layer: int, step: DecodeStep, tables: StepTables, q: torch.Tensor, scale: float) -> None:
        buffers, rule, hot = self.layers[layer], self.settings.rule, self.cache.hot
        heads, batch = buffers.heads.numel(), tables.length.numel()
        if not heads:
            return
        inputs = step.inputs[:, :batch].long().repeat_interleave(heads, 1)  # [.., N], N requests' heads
        length, prompt, room = inputs[LENGTH], inputs[PROMPT], inputs[ROOM] // self.index.rows
        cap, start, first = (x[:batch, buffers.numbers].flatten().long() for x in
                             (step.cap, step.page_start, step.index_start))  # fmt: skip
        made = inputs[UNITS] + length // self.index.span
        units = torch.where(room > 0, torch.minimum(made, room), 0)
        self._extend(start, first, cap, length, units, (made <= room) & (length > prompt))
        if not self.settings.tuning.retrieval:
            return
        queries = q.unflatten(1, (-1, self.group))[:, buffers.compressed].flatten(0, 1)  # [N, G, D]
        due = (cap < length) & (room > 0) & ((length - prompt) % self.settings.monitor_interval == 0)
        places = torch.where(due, cap - rule.sink - rule.window, 0).clamp(min=0)  # [N]
        found = [
            self._choose(step, start[some], first[some], units[some], length[some], places[some], queries[some], scale)
            for some in pieces(len(length), _BYTES * step.longest)
        ]
        tokens, rows, taken, count = (torch.cat(each) for each in zip(*found, strict=True))
        step.work.give(tokens, rows, taken, torch.where(due, count, 0), heads)
        self.ops.swap_in(buffers, buffers.host, step.slots, step.starts, tables, hot, rule.sink, step.work)

    def _choose(
        self, step: DecodeStep, start: torch.Tensor, first: torch.Tensor, units: torch.Tensor, length: torch.Tensor,
        places: torch.Tensor, q: torch.Tensor, scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        """Tokens that come [N, S], the places that they take and these's flat hot rows, and how many; q [N, G, D]."""
        rule, hot, width = self.settings.rule, self.cache.hot, step.longest
        scores = self._scores(first, units, q, scale, width)
        at = torch.arange(width, device=self.device)
        inside = (at >= rule.sink) & (at < (length - rule.window)[:, None])
        row = torch.arange(self._most(width), device=self.device)
        flat = self._flat(start[:, None], rule.sink + row)  # [N, S]
        held = hot.position.view(-1)[flat].long()
        swaps = top.exchange(top.best(scores, places, inside), held, row < places[:, None])
        return swaps.tokens, swaps.places, flat.gather(1, swaps.places.clamp(max=row.numel() - 1)), swaps.count

    def _most(self, tokens: int) -> int:
        """Rows of any full head of requests of up to `tokens` tokens: it holds fewer than its request has."""
        share = int(self.context * max(self.settings.layout.fractions, default=0.0)) + 1
        return min(max(share, self.settings.rule.dense_below), tokens)  # kept whole until it had so many

    def _extend(
        self, start: torch.Tensor, first: torch.Tensor, cap: torch.Tensor, length: torch.Tensor, units: torch.Tensor,
        room: torch.Tensor,
    ) -> None:  # fmt: skip
        """A unit for every `span` tokens that decoding has completed; they are still in the ring. All [N]."""
        span, rule, hot = self.index.span, self.settings.rule, self.cache.hot
        complete = room & (units > 0) & (length % span == 0)
        token = (length[:, None] - span + torch.arange(span, device=self.device)).clamp(min=0)  # [N, span]
        row = ring_row(token, cap[:, None], rule.sink, rule.ring)
        keys = hot.k.view(-1, hot.k.shape[-1])[self._flat(start[:, None], row)]  # [N, span, D]
        rows = (units[:, None] - 1).clamp(min=0) * self.index.rows + torch.arange(self.index.rows, device=self.device)
        self._write(self._flat(first[:, None], rows), keys[:, None], token[:, :1], complete[:, None])

    def _scores(
        self, first: torch.Tensor, units: torch.Tensor, q: torch.Tensor, scale: float, width: int
    ) -> torch.Tensor:
        """Scores [N, width] float32 by the index; what it does not cover comes last. q [N, G, D]."""
        span, hot = self.index.span, self.cache.hot
        unit = torch.arange(max(1, width // span), device=self.device)
        rows = torch.arange(unit.numel() * self.index.rows, device=self.device)
        real = unit < units[:, None]  # [N, U]
        flat = self._flat(first[:, None], rows)
        one = flat[:, : self.index.rows].repeat(1, len(unit))
        flat = torch.where(real.repeat_interleave(self.index.rows, 1), flat, one)
        k, v = (store.view(-1, store.shape[-1])[flat].unflatten(1, (unit.numel(), -1)) for store in (hot.k, hot.v))
        found = self.index.scores(q, k, v, scale, real)  # [N, U * span]
        token = hot.position.view(-1)[flat[:, :: self.index.rows]].long()[..., None]
        token = torch.where(real[..., None], token + torch.arange(span, device=self.device), width).flatten(1)
        scores = torch.full((len(first), width + 1), float("-inf"), device=self.device)
        return scores.scatter_(1, token.clamp(0, width), found.float())[:, :width]
