"""Prompts that go on with working sets, as the device sees them: one row of numbers each, at an address that graphs
keep, and their token slots."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.lanes import upload
from hetero_sglang.engine.plan import Prompt
from hetero_sglang.ops.base import StepTables

BLOCK = 8  # new tokens that look for rows together: more want more than heads can hold at once
BLOCKS = 16  # of a prompt, at most; where it has more tokens they are longer
LATEST = 8  # of the last ones, that say which of the new tokens are held beyond the window
_ALIGNED = 4  # numbers: kernels are compiled once for all rows and fields


@dataclass(frozen=True)
class Block:
    """Some of a prompt's new tokens; of a prompt that has not so many, none."""

    tokens: slice
    numbers: torch.Tensor  # [4] int32, as `Behind`'s
    step: StepTables  # of a step of the request alone, that sees what its set stands for
    asked: torch.Tensor  # [BLOCK or more] int32, which of the new tokens look for rows


@dataclass(frozen=True)
class Going:
    """A request's set; all int32 on the device."""

    slots: torch.Tensor  # of all its tokens, those of other requests before them
    starts: torch.Tensor  # [1], where its own begin
    numbers: torch.Tensor  # [4], `Behind`'s of all new tokens
    blocks: list[Block]
    after: StepTables  # of a step of it alone, that sees the new tokens too
    latest: torch.Tensor  # [LATEST], which of the new tokens look for others of them
    first: int = 0  # as `starts`
    header: torch.Tensor | None = None  # what a graph is to read; None: it has no room for the request


class Places:
    """A row `now` of what graphs read, and room for the token slots of a pass's requests."""

    def __init__(self, tables: DeviceTables, clock: torch.Tensor, context: int | None = None) -> None:
        """`clock` [1]: of a step; `context`: tokens of a request; None: there are no graphs."""
        self.tables, self.clock, self.device = tables, clock, tables.device
        self.heads = tables.cap.shape[1]
        self.now = torch.zeros(sum(self._sizes(BLOCK)), dtype=torch.int32, device=self.device)
        room = 0 if context is None else max(context, 1 << 19)
        self.slots = torch.zeros(room, dtype=torch.int32, device=self.device)

    def none(self) -> Going:
        """What graphs read: until they run, no token of no request."""
        return self._read(self.now, self.slots, BLOCK, BLOCKS)

    def _sizes(self, block: int) -> list[int]:
        """Of a row's fields: starts, after, latest, numbers, each block's length, numbers and who asks, caps, pages."""
        parts = [1, 1, LATEST, 4, *[1, 4, block] * BLOCKS, self.heads, self.heads]
        return [part + -part % _ALIGNED for part in parts]

    def _read(
        self, row: torch.Tensor, slots: torch.Tensor, block: int, count: int, first: int = 0,
        header: torch.Tensor | None = None,
    ) -> Going:  # fmt: skip
        """`count`: blocks of it."""
        starts, after, latest, numbers, *some, cap, pages = row.split(self._sizes(block))
        tables = cap[None, : self.heads], pages[None, : self.heads], self.tables.page_list, self.clock
        blocks = [
            Block(slice(at * block, (at + 1) * block), mine, StepTables(length[:1], *tables), asked[:block])
            for at, (length, mine, asked) in enumerate(zip(some[::3], some[1::3], some[2::3], strict=True))
        ]
        seen = StepTables(after[:1], *tables)
        return Going(slots, starts[:1], numbers, blocks[:count], seen, latest, first, header)

    def go(self, prompts: Sequence[Prompt]) -> dict[int, Going]:
        """By request slot; nothing waits for it."""
        ends = accumulate(seq.length for seq in prompts)
        slots = upload(torch.cat([seq.slots for seq in prompts]).int(), self.device)
        if room := min(slots.numel(), self.slots.numel()):
            self.slots[:room] = slots[:room]
        made = {}
        for seq, end in zip(prompts, ends, strict=True):
            block, first = max(BLOCK, -(-seq.count // BLOCKS)), end - seq.length
            row = upload(self._row(seq, first, block), self.device)
            *_, cap, pages = row.split(self._sizes(block))
            cap[: self.heads] = self.tables.cap[seq.ws.slot]
            pages[: self.heads] = self.tables.page_start[seq.ws.slot]
            header = row if block == BLOCK and end <= self.slots.numel() else None
            made[seq.ws.slot] = self._read(row, slots, block, -(-seq.count // block), first, header)
        return made

    def _row(self, seq: Prompt, first: int, block: int) -> torch.Tensor:
        """Of a request whose token slots begin at `first`; but for its caps and pages."""
        behind, newest = [seq.prefix, seq.ws.length], seq.count - 1
        fields = [[first], [seq.length], [max(0, newest - n) for n in range(LATEST)], [seq.count, 0, *behind]]
        for begin in range(0, block * BLOCKS, block):
            here = max(0, min(block, seq.count - begin))
            asked = [min(begin + n, newest) for n in range(block)]
            fields += [[seq.ws.length if here else 0], [here, begin, *behind], asked]
        row = [value for field in fields for value in field + [0] * (-len(field) % _ALIGNED)]
        return torch.tensor(row + [0] * (sum(self._sizes(block)) - len(row)), dtype=torch.int32)
