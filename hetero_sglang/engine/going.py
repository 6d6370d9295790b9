"""Prompts that go on with working sets, as the device sees them: rows of numbers, at an address that graphs keep, and
their token slots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.lanes import upload
from hetero_sglang.engine.plan import Prompt
from hetero_sglang.ops.base import StepTables

BLOCK = 8  # new tokens that look for rows together: more want more than can come to a head
BLOCKS = 16  # that look at once, at most
LATEST = 8  # of the last ones, that say what the set holds afterwards
_NO_TOKEN = 0  # SGLang's own slot for padding
_ALIGNED = 4  # numbers: kernels are compiled once for all rows and fields


@dataclass(frozen=True)
class Round:
    """Some blocks of a prompt's new tokens, and what else a graph of its layers reads; all int32 on the device."""

    row: torch.Tensor  # all of the following
    numbers: torch.Tensor  # [4], `Behind`'s
    step: StepTables  # each block a request of its own, as long as the prefix; of length 0 where it is none
    starts: torch.Tensor  # [blocks], where the token slots begin
    asked: torch.Tensor  # [blocks * BLOCK], which of the new tokens look for rows
    every: torch.Tensor  # [4], `Behind`'s of all new tokens
    after: StepTables  # of a step of the request alone, that sees the new tokens too
    latest: torch.Tensor  # [LATEST], which of the new tokens look for rows then
    new: torch.Tensor  # token slots of new tokens, as many as a graph may have; no token's where there are fewer

    @property
    def before(self) -> StepTables:
        """Of a step of the request alone, as long as its prefix."""
        step = self.step
        first = {name: getattr(step, name)[:1] for name in ("length", "cap", "page_start", "request")}
        return replace(step, **first)


@dataclass(frozen=True)
class Going:
    """A request's set."""

    slots: torch.Tensor  # int32, of all its tokens, those of other requests before them
    first: int  # where its own begin
    rounds: list[Round]
    fits: bool  # whether graphs have room for it


class Places:
    """A row `now` of what graphs read, and room for the token slots of a pass's requests."""

    def __init__(
        self, tables: DeviceTables, clock: torch.Tensor, blocks: int, most: int, context: int | None = None
    ) -> None:
        """`clock` [1]: of a step; `blocks` of a round, at most; `most`: new tokens of a graph; `context`: tokens of a
        request; None: there are no graphs."""
        self.tables, self.clock, self.device, self.blocks, self.most = tables, clock, tables.device, blocks, most
        heads = tables.cap.shape[1]
        fields = [4, blocks, blocks, blocks * BLOCK, 4, 1, LATEST, blocks, most, heads, heads]
        self.sizes = [size + -size % _ALIGNED for size in fields]
        self.now = torch.zeros(sum(self.sizes), dtype=torch.int32, device=self.device)
        room = 0 if context is None else max(context, 1 << 19)
        self.slots = torch.zeros(room, dtype=torch.int32, device=self.device)

    def read(self, row: torch.Tensor, blocks: int) -> Round:
        """Its first `blocks`. Of `now`: what graphs read; until they run, no token of no request."""
        numbers, lengths, starts, asked, every, after, latest, request, new, cap, pages = row.split(self.sizes)
        tables, heads = self.tables, self.tables.cap.shape[1]
        cap, pages, counts = cap[None, :heads], pages[None, :heads], (tables.came, tables.told)
        wide, others = (cap.expand(blocks, -1), pages.expand(blocks, -1)), (tables.page_list, self.clock)
        step = StepTables(lengths[:blocks], *wide, *others, request[:blocks], *counts)
        seen = StepTables(after[:1], cap, pages, *others, request[:1], *counts)
        return Round(
            row, numbers, step, starts[:blocks], asked[: blocks * BLOCK], every, seen, latest, new[: self.most]
        )

    def go(self, prompts: Sequence[Prompt], fitting: Callable[[int], int]) -> dict[int, Going]:
        """By request slot; nothing waits for it. `fitting`: how many blocks of a request of so many tokens may look at
        once."""
        ends = accumulate(seq.length for seq in prompts)
        slots = torch.cat([seq.slots for seq in prompts])
        if room := min(slots.numel(), self.slots.numel()):
            self.slots[:room] = slots[:room]
        made = {}
        for seq, end in zip(prompts, ends, strict=True):
            each, first = min(self.blocks, fitting(seq.length)) * BLOCK, end - seq.length
            begins = range(0, seq.count, each)
            rows = upload(torch.tensor([self._row(seq, first, begin, each) for begin in begins]).int(), self.device)
            *_, new, cap, pages = rows.split(self.sizes, 1)
            new[:, : min(seq.count, self.most)] = seq.slots[seq.prefix :][: self.most]
            for field, table in ((cap, self.tables.cap), (pages, self.tables.page_start)):
                field[:, : table.shape[1]] = table[seq.ws.slot]
            blocks = [-(-min(each, seq.count - begin) // BLOCK) for begin in begins]
            rounds = [self.read(row, some) for row, some in zip(rows, blocks, strict=True)]
            made[seq.ws.slot] = Going(slots, first, rounds, end <= self.slots.numel() and seq.count <= self.most)
        return made

    def _row(self, seq: Prompt, first: int, begin: int, each: int) -> list[int]:
        """Of a round of `each` new tokens from this one on; the request's token slots begin at `first`. But for its new
        tokens' slots, its caps and its pages, which the device knows."""
        behind, newest = [seq.prefix, seq.ws.length], min(begin + each, seq.count) - 1
        opens = range(begin, begin + self.blocks * BLOCK, BLOCK)
        fields = [
            [newest + 1 - begin, begin, *behind],
            [seq.prefix if opening <= newest else 0 for opening in opens],
            [first] * self.blocks,
            [min(opening + n, newest) for opening in opens for n in range(BLOCK)],
            [seq.count, 0, *behind],
            [seq.length],
            [max(0, newest - n) for n in range(LATEST)],
            [seq.ws.slot] * self.blocks,
            [_NO_TOKEN] * self.most,
        ]
        row = [value for field in fields for value in field + [0] * (-len(field) % _ALIGNED)]
        return row + [0] * (sum(self.sizes) - len(row))
