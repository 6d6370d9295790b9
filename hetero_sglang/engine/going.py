"""Prompts that go on with working sets, as the device sees them: one row of numbers each, at an address that graphs
keep, and their token slots."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.lanes import upload
from hetero_sglang.engine.plan import Prompt
from hetero_sglang.ops.base import StepTables

ASKED = 64  # of the new tokens, evenly spread, that say which rows they want
LATEST = 8  # of the last ones, that say which of the new tokens are held beyond the window


@dataclass(frozen=True)
class Going:
    """A request's set; all int32 on the device."""

    slots: torch.Tensor  # of all its tokens, those of other requests before them
    starts: torch.Tensor  # [1], where its own begin
    numbers: torch.Tensor  # [3]: new tokens, its prefix's, the set's
    before: StepTables  # of a step of it alone, that sees what the set stands for
    after: StepTables  # and one that sees the new tokens too
    asked: torch.Tensor  # [ASKED], which of the new tokens look for rows first
    latest: torch.Tensor  # [LATEST], and which afterwards
    first: int = 0  # as `starts`
    header: torch.Tensor | None = None  # what a graph is to read; None: it has no room for the request


class Places:
    """A row `now` of what graphs read, and room for the token slots of a pass's requests."""

    def __init__(self, tables: DeviceTables, clock: torch.Tensor, context: int | None = None) -> None:
        """`clock` [1]: of a step; `context`: tokens of a request; None: there are no graphs."""
        self.tables, self.clock, self.device = tables, clock, tables.device
        heads = tables.cap.shape[1]
        parts = [1, 3, 1, 1, ASKED, LATEST, heads, heads]
        self.sizes = [*parts, -sum(parts) % 4]  # all rows are aligned alike: kernels are compiled once
        self.now = torch.zeros(sum(self.sizes), dtype=torch.int32, device=self.device)
        room = 0 if context is None else max(context, 1 << 19)
        self.slots = torch.zeros(room, dtype=torch.int32, device=self.device)

    def none(self) -> Going:
        """What graphs read: until they run, no token of no request."""
        return self._read(self.now, self.slots)

    def _read(
        self, header: torch.Tensor, slots: torch.Tensor, first: int = 0, told: torch.Tensor | None = None
    ) -> Going:
        starts, numbers, before, after, asked, latest, cap, start, _ = header.split(self.sizes)
        step = StepTables(before, cap[None], start[None], self.tables.page_list, self.clock)
        return Going(slots, starts, numbers, step, replace(step, length=after), asked, latest, first, told)

    def go(self, prompts: Sequence[Prompt]) -> dict[int, Going]:
        """By request slot; nothing waits for it."""
        lengths = [seq.length for seq in prompts]
        ends = torch.tensor(lengths).cumsum(0).tolist()
        firsts = [end - length for end, length in zip(ends, lengths, strict=True)]
        rows = torch.tensor([self._numbers(seq, first) for seq, first in zip(prompts, firsts, strict=True)])
        headers = torch.empty(len(prompts), self.now.numel(), dtype=torch.int32, device=self.device)
        headers[:, : rows.shape[1]] = upload(rows.int(), self.device)
        requests = upload(torch.tensor([seq.ws.slot for seq in prompts]), self.device)
        *_, cap, start, _ = headers.split(self.sizes, 1)
        cap.copy_(self.tables.cap[requests])
        start.copy_(self.tables.page_start[requests])
        slots = upload(torch.cat([seq.slots for seq in prompts]).int(), self.device)
        fits = [end <= self.slots.numel() for end in ends]
        if room := min(slots.numel(), self.slots.numel()):
            self.slots[:room] = slots[:room]
        return {
            seq.ws.slot: self._read(header, slots, first, header if there else None)
            for seq, first, header, there in zip(prompts, firsts, headers, fits, strict=True)
        }

    def _numbers(self, seq: Prompt, first: int) -> list[int]:
        count, reached = seq.count, seq.ws.length
        asked = torch.linspace(0, count - 1, ASKED).long().tolist()
        latest = [max(0, count - LATEST + n) for n in range(LATEST)]
        return [first, count, seq.prefix, reached, reached, seq.length, *asked, *latest]
