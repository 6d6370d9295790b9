"""Parts of a pass as CUDA graphs: the layers between two branches, for some numbers of requests and turns, and heads.

A pass that may end early cannot be one graph; in parts it costs a launch a part. Buffers have addresses that graphs
keep, and state stays in them from one part to the next. The device is not kept waiting for a branch's word: it goes on
with the next part, behind which the pass ends if the branch was sure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from hetero_sglang.cache.lanes import Recorder
from hetero_sglang.sglang.early_exit.layers import through
from hetero_sglang.sglang.early_exit.plans import Plan
from hetero_sglang.sglang.early_exit.turn import Turn

TURNS = (1, 2, 3, 5, 9, 17)
_WIDTHS = (1, 2, 4, 8, 16, 32)


def widths_to(most: int) -> Sequence[int]:
    """Of parts for up to so many requests, ascending."""
    return (*(width for width in _WIDTHS if width < most), most)


def up_to(sizes: Sequence[int], wanted: int) -> Sequence[int]:
    """Ascending sizes, up to the first that has room."""
    return sizes[: sizes.index(at_least(sizes, wanted)) + 1]


def at_least(sizes: Sequence[int], wanted: int) -> int:
    """The smallest of ascending sizes that has room."""
    return next(size for size in sizes if size >= wanted)


def padding(rows: int, device: torch.device) -> torch.Tensor:
    """For `decode_batch`, of nobody: one token in slot 0 each."""
    numbers = torch.zeros(4, rows, dtype=torch.int64, device=device)
    numbers[0] = 1
    return numbers


def decode_batch(numbers: torch.Tensor) -> ForwardBatch:
    """Of requests of one token, at addresses of its own: lengths, positions, token slots and request slots [4, n]."""
    lengths, positions, slots, requests = numbers
    rows, device = numbers.shape[1], numbers.device
    return ForwardBatch(
        forward_mode=ForwardMode.DECODE,
        batch_size=rows,
        input_ids=torch.zeros(rows, dtype=torch.int64, device=device),
        req_pool_indices=requests,
        seq_lens=lengths,
        out_cache_loc=slots,
        seq_lens_sum=rows,
        seq_lens_cpu=torch.ones(rows, dtype=torch.int64),
        positions=positions,
        capture_hidden_mode=CaptureHiddenMode.NULL,
    )


class Rows:
    """What parts with `turns` turns of `width` requests work on. A step's own turn is the last, turns of padding come
    first; what is padding has one token in slot 0, or none where working sets attend."""

    def __init__(
        self, plan: Plan, turns: int, width: int, hidden: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.plan, self.turns, self.width = plan, turns, width
        self.padding = padding(turns * width, device).unflatten(1, (turns, width))
        self.numbers = self.padding.clone()
        self.batch = decode_batch(self.numbers.flatten(1))
        self.state = torch.zeros(2, turns, width, hidden, dtype=dtype, device=device)  # hidden, residual
        self.filled: Sequence[Turn] = ()
        self.held: Sequence[Turn] = ()  # whose state is here

    def begin(self) -> None:
        """Before a part is recorded."""
        self.plan.outside(self.batch, [None] * (self.turns - 1))

    def fill(self, turns: Sequence[Turn], batch: Any) -> None:
        """Before parts run for these turns, whose requests are those of `batch`; their state may still change."""
        if _same(self.filled, turns):
            return
        mine, (before, count) = self.batch, self._place(turns)
        on_host = torch.ones(self.turns, self.width, dtype=torch.int64)
        on_host[before:, :count] = torch.stack([turn.on_host for turn in turns])
        mine.seq_lens_cpu.copy_(on_host.flatten())
        mine.seq_lens_sum = int(on_host.sum())
        if before or count < self.width:
            self.numbers.copy_(self.padding)
        each = [[turn.lengths for turn in turns], [turn.positions for turn in turns], [turn.slots for turn in turns]]
        every = [*chain(*each), *[batch.req_pool_indices[:count]] * len(turns)]
        self.numbers[:, before:, :count] = torch.stack(every).unflatten(0, (4, -1))
        self.plan.outside(mine, [*[None] * before, *turns[:-1]])
        self.filled, self.held = turns, ()

    def hold(self, turns: Sequence[Turn]) -> None:
        """The next part goes on with their state."""
        if _same(self.held, turns):
            return
        before, count = self._place(turns)
        fresh = turns[0].residual is None  # no layer has run
        every = [turn.hidden for turn in turns] + ([] if fresh else [turn.rest for turn in turns])
        state = torch.stack(every).unflatten(0, (-1, len(turns)))  # [1 or 2, turns, B, H]; some may have been here
        if before or count < self.width:
            self.state.zero_()
        self.state[: len(state), before:, :count] = state
        self.held = turns

    def give(self, turns: Sequence[Turn], keep: bool = False) -> None:
        """The turns' state is what the latest part has made of it; `keep`: for longer than until the next one."""
        before, count = self._place(turns)
        state = self.state[:, before:, :count].clone() if keep else self.state[:, before:, :count]
        for number, turn in enumerate(turns):
            turn.hidden, turn.residual = state[:, number]

    def _place(self, turns: Sequence[Turn]) -> tuple[int, int]:
        """Turns of padding before these, and their requests."""
        return self.turns - len(turns), len(turns[0].slots)


def _same(some: Sequence[Turn], others: Sequence[Turn]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


class Graph(ABC):
    """Work that is done again, with what its buffers hold then."""

    def __init__(self) -> None:
        self.replay: Callable[[], None] = self.work

    @abstractmethod
    def work(self) -> None:
        """It may wait for nothing."""

    def record(self, recorder: Recorder) -> None:
        """Make the graph."""
        self.replay = recorder.record(self.work)


class Part(Graph):
    """Layers [first, last) for some rows."""

    def __init__(self, model: Any, rows: Rows, first: int, last: int) -> None:
        super().__init__()
        self.model, self.rows, self.first, self.last = model, rows, first, last

    def record(self, recorder: Recorder) -> None:
        """Make the graph."""
        self.rows.begin()
        super().record(recorder)

    def work(self) -> None:
        rows, (hidden, residual) = self.rows, self.rows.state.flatten(1, 2)
        with forward_context(ForwardContext(attn_backend=rows.plan.backend)):
            rows.plan.inside(rows.batch, rows.turns - 1, rows.width, self.first == 0)
            before = residual if self.first else None
            out, rest = through(self.model, self.first, self.last, rows.batch, hidden, before)
            rows.plan.after()
            residual.copy_(rest)  # first: after the first layer it may lie where hidden states came from
            hidden.copy_(out)


class Asking(Graph):
    """A branch's logits of `width` states, and how sure it is of the least sure of them."""

    def __init__(
        self, ask: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], width: int, hidden: int,
        dtype: torch.dtype, device: torch.device,
    ) -> None:  # fmt: skip
        """`ask`: logits [width, V] and confidence [width] of states [width, H]."""
        super().__init__()
        self.ask, self.count = ask, width
        self.state = torch.zeros(width, hidden, dtype=dtype, device=device)
        self.valid = torch.ones(width, dtype=torch.bool, device=device)
        logits, sure = ask(self.state)
        self.logits, self.sure = torch.zeros_like(logits), torch.zeros_like(sure[:1])

    def work(self) -> None:
        logits, sure = self.ask(self.state)
        self.logits.copy_(logits)
        self.sure.copy_(torch.where(self.valid, sure, 1.0).amin(0, keepdim=True))

    def run(self, turn: Turn) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a turn of B requests: logits [B, V], which the next pass writes over, and confidence [1]."""
        count = len(turn.slots)
        if count != self.count:
            self.count = count
            self.valid.fill_(False)[:count] = True
        torch.add(turn.hidden, turn.rest, out=self.state[:count])
        self.replay()
        return self.logits[:count], self.sure


class Copying(Graph):
    """Keys and values of the layers behind a stop, of the turn that some rows hold."""

    def __init__(self, copy: Callable[[torch.Tensor, Any], None], rows: Rows) -> None:
        """`copy`: writes those of states [n, H] of a batch."""
        super().__init__()
        self.copy, self.rows = copy, rows

    def work(self) -> None:
        self.copy(self.rows.state.flatten(1, 2).sum(0), self.rows.batch)


@dataclass(frozen=True)
class Parts:
    """All that a pass may be made of, for steps of up to `widths[-1]` requests."""

    widths: Sequence[int]
    rows: dict[tuple[int, int], Rows] = field(default_factory=dict)  # by turns and width
    layers: dict[tuple[int, int, int], Part] = field(default_factory=dict)  # by first layer, turns and width
    asking: dict[tuple[int, int], Asking] = field(default_factory=dict)  # by branch's layer and width
    copying: dict[tuple[int, int], Copying] = field(default_factory=dict)  # by stop's layer and width

    def graphs(self) -> list[Graph]:
        """All of them."""
        return [*self.layers.values(), *self.asking.values(), *self.copying.values()]

    def width(self, count: int) -> int:
        """Of the parts for a step of so many requests."""
        return at_least(self.widths, count)

    def of(self, turns: Sequence[Turn], width: int) -> Rows:
        """Those that have room for these turns."""
        return self.rows[at_least(TURNS, len(turns)), width]

    def run(self, first: int, turns: Sequence[Turn], width: int, batch: Any) -> None:
        """These turns of the requests of `batch` go through the part that begins with layer `first`."""
        rows = self.of(turns, width)
        rows.fill(turns, batch)
        rows.hold(turns)
        self.layers[first, rows.turns, width].replay()
        rows.give(turns)
