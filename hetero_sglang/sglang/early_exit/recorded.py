"""Parts of a pass as CUDA graphs: the layers between two branches, for some numbers of requests and turns, and heads.

A pass that may end early cannot be one graph; in parts it costs a launch a part. Buffers have addresses that graphs
keep; what is padding has one token in slot 0, or none where working sets attend. Turns of padding come first: a step's
own turn is the last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from hetero_sglang.cache.lanes import Recorder
from hetero_sglang.sglang.early_exit.layers import through
from hetero_sglang.sglang.early_exit.plans import Plan
from hetero_sglang.sglang.early_exit.turn import Turn

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
TURNS = (1, 2, 3, 5, 9, 17)


def up_to(sizes: Sequence[int], wanted: int) -> Sequence[int]:
    """Ascending sizes, up to the first that has room."""
    return sizes[: sizes.index(at_least(sizes, wanted)) + 1]


def at_least(sizes: Sequence[int], wanted: int) -> int:
    """The smallest of ascending sizes that has room."""
    return next(size for size in sizes if size >= wanted)


def decode_batch(rows: int, device: torch.device) -> ForwardBatch:
    """Of so many requests of one token, at addresses of its own."""
    whole = {"dtype": torch.int64, "device": device}
    return ForwardBatch(
        forward_mode=ForwardMode.DECODE,
        batch_size=rows,
        input_ids=torch.zeros(rows, **whole),
        req_pool_indices=torch.zeros(rows, **whole),
        seq_lens=torch.ones(rows, **whole),
        out_cache_loc=torch.zeros(rows, **whole),
        seq_lens_sum=rows,
        seq_lens_cpu=torch.ones(rows, dtype=torch.int64),
        positions=torch.zeros(rows, **whole),
        capture_hidden_mode=CaptureHiddenMode.NULL,
    )


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
    """Layers [first, last) for `turns` turns of `width` requests."""

    def __init__(
        self, model: Any, plan: Plan, first: int, last: int, turns: int, width: int, hidden: int, dtype: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.plan, self.first, self.last = model, plan, first, last
        self.turns, self.width = turns, width
        rows = turns * width
        self.batch = decode_batch(rows, device)
        self.hidden = torch.zeros(rows, hidden, dtype=dtype, device=device)
        self.residual = torch.zeros_like(self.hidden)
        self.out = torch.zeros(2, rows, hidden, dtype=dtype, device=device)

    def record(self, recorder: Recorder) -> None:
        """Make the graph."""
        self.plan.outside(self.batch, [None] * (self.turns - 1))
        super().record(recorder)

    def work(self) -> None:
        with forward_context(ForwardContext(attn_backend=self.plan.backend)):
            self.plan.inside(self.batch, self.turns - 1, self.width, self.first == 0)
            before = self.residual if self.first else None
            hidden, residual = through(self.model, self.first, self.last, self.batch, self.hidden, before)
            self.out[0].copy_(hidden)
            self.out[1].copy_(residual)

    def run(self, turns: Sequence[Turn], batch: Any) -> None:
        """The turns go through; their requests are those of `batch`."""
        before = self.turns - len(turns)
        mine, count = self.batch, len(turns[0].slots)
        on_host = torch.ones(self.turns, self.width, dtype=torch.int64)
        on_host[before:, :count] = torch.stack([turn.on_host for turn in turns])
        mine.seq_lens_cpu.copy_(on_host.flatten())
        mine.seq_lens_sum = int(on_host.sum())
        _put(mine.seq_lens, [turn.lengths for turn in turns], self.turns, 1)
        _put(mine.positions, [turn.positions for turn in turns], self.turns, 0)
        _put(mine.out_cache_loc, [turn.slots for turn in turns], self.turns, 0)
        _put(mine.req_pool_indices, [batch.req_pool_indices[:count]] * len(turns), self.turns, 0)
        _put(self.hidden, [turn.hidden for turn in turns], self.turns, 0)
        if self.first:
            _put(self.residual, [turn.rest for turn in turns], self.turns, 0)
        self.plan.outside(mine, [*[None] * before, *turns[:-1]])
        self.replay()
        for turn, (hidden, residual) in zip(turns, self._came(before, count), strict=True):
            turn.hidden, turn.residual = hidden, residual

    def _came(self, before: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """State of each turn, in tensors of its own: the next part's are in the same memory."""
        every = self.out.unflatten(1, (self.turns, self.width))[:, before:, :count].clone()
        return [(every[0, n], every[1, n]) for n in range(every.shape[1])]


def _put(buffer: torch.Tensor, values: Sequence[torch.Tensor], turns: int, padding: int) -> None:
    """Values [B, ..] of turns into the last turns of a buffer [turns * width, ..], whose rest is padding."""
    each = buffer.unflatten(0, (turns, -1))
    each.fill_(padding)
    each[turns - len(values) :, : len(values[0])] = torch.stack(list(values))


class Asking(Graph):
    """A branch's logits of `width` states, and whether it is sure of the first `count`."""

    def __init__(
        self, ask: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], width: int, hidden: int,
        dtype: torch.dtype, device: torch.device,
    ) -> None:  # fmt: skip
        """`ask`: logits [width, V] and confidence [width] of states [width, H]."""
        super().__init__()
        self.ask = ask
        self.state = torch.zeros(width, hidden, dtype=dtype, device=device)
        logits, sure = ask(self.state)
        self.logits, self.sure = torch.zeros_like(logits), torch.zeros_like(sure)

    def work(self) -> None:
        logits, sure = self.ask(self.state)
        self.logits.copy_(logits)
        self.sure.copy_(sure)

    def run(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of states [B, H]: logits [B, V], which the next pass writes over, and confidence [B]."""
        self.state[: len(state)] = state
        self.replay()
        return self.logits[: len(state)], self.sure[: len(state)]


class Copying(Graph):
    """Keys and values of the layers behind a branch, of `width` states at it."""

    def __init__(
        self, copy: Callable[[torch.Tensor, Any], None], width: int, hidden: int, dtype: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        """`copy`: writes those of states [width, H] of a batch."""
        super().__init__()
        self.copy, self.batch = copy, decode_batch(width, device)
        self.state = torch.zeros(width, hidden, dtype=dtype, device=device)

    def work(self) -> None:
        self.copy(self.state, self.batch)

    def run(self, turn: Turn) -> None:
        """Of the step's own turn."""
        _put(self.batch.positions, [turn.positions], 1, 0)
        _put(self.batch.out_cache_loc, [turn.slots], 1, 0)
        _put(self.state, [turn.state], 1, 0)
        self.replay()


@dataclass(frozen=True)
class Parts:
    """All that a pass may be made of, for steps of up to `widths[-1]` requests."""

    widths: Sequence[int]
    layers: dict[tuple[int, int, int], Part] = field(default_factory=dict)  # by first layer, turns and width
    asking: dict[tuple[int, int], Asking] = field(default_factory=dict)  # by branch's layer and width
    copying: dict[tuple[int, int], Copying] = field(default_factory=dict)

    def graphs(self) -> list[Graph]:
        """All of them."""
        return [*self.layers.values(), *self.asking.values(), *self.copying.values()]

    def width(self, count: int) -> int:
        """Of the parts for a step of so many requests."""
        return at_least(self.widths, count)
