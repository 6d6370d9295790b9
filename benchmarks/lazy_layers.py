"""Time per layer of what a lazy step does beside attention: `probe`, `choose`, `swap_in`, `seat`, in one CUDA graph.

Llama-3.1-8B's heads (8 KV heads of 128, 4 query heads each) and matrix products, 15% of the rows kept. Every layer has
an index and hot rows of its own, so that the card's cache serves none of them; queries are new before each replay, so
that rows come.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.copies import once
from benchmarks.counts import counts
from benchmarks.kernels import captured
from hetero_sglang.cache.host_layout import BLOCK
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.cache.lanes import Lane, mark
from hetero_sglang.config.layout import LayerLayout
from hetero_sglang.ops.base import Arrivals, LayerBuffers, StepTables
from hetero_sglang.ops.reference.choose import used_at_first
from hetero_sglang.ops.triton.choose import choose
from hetero_sglang.ops.triton.decode import BESIDE, DecodeBuffers, decode_attention
from hetero_sglang.ops.triton.probe import probe
from hetero_sglang.ops.triton.store import store
from hetero_sglang.ops.triton.swap_in import seat, swap_in
from hetero_sglang.ops.triton.workspace import Workspace
from hetero_sglang.profile.index_plan import Fields, words

HEADS, GROUP, DIM, DTYPE = 8, 4, 128, torch.bfloat16
HIDDEN, INNER = 4096, 14336
FIELDS: Fields = ((8, 4), (24, 2))
LAYERS, KEPT, SINK, WINDOW, PAGE, ROUNDS = 8, 0.15, 16, 64, 16, 7
COME = 30  # rows that may come to a head in a step: 15 on the mean, where every other layer looks for some
# How many of probe, choose and swap_in are launched; resting, it is no layer's turn.
STAGES = {"attention alone": 0, "resting": 3, "probe": 1, "choose": 2, "swap_in": 3}


class Layers:
    """Requests of `tokens` tokens each, whose heads are full and have held random runs for a while."""

    def __init__(self, device: torch.device, host: torch.Tensor, batch: int, tokens: int, run: int) -> None:
        ints = dict(dtype=torch.int32, device=device)
        places = int(KEPT * tokens) // run
        cap, units = SINK + places * run + WINDOW, batch * HEADS
        pages = -(-cap // PAGE)
        self.hot = HotPool(LAYERS * units * pages, PAGE, DIM, DIM, DTYPE, device)
        opening = torch.arange(0, LAYERS * units * pages, pages, **ints).view(LAYERS, batch, HEADS)
        lists = torch.arange(LAYERS * units * pages, **ints)
        self.step = StepTables(
            torch.full((batch,), tokens, **ints), torch.full((batch, LAYERS * HEADS), cap, **ints),
            opening.transpose(0, 1).flatten(1).contiguous(), lists, torch.zeros(1, **ints),
            **counts(batch, LAYERS * HEADS, device),
        )  # fmt: skip
        self._hold(places, tokens, run)
        slots = min(batch * tokens, host.shape[0] * BLOCK)
        self.slots = torch.arange(batch * tokens, **ints).view(-1, BLOCK)[torch.randperm(batch * tokens // BLOCK)]
        self.slots = (self.slots % slots).flatten()
        self.starts = torch.arange(batch, **ints) * tokens
        directions = sum(count for count, _ in FIELDS)
        decode = torch.randn(HEADS, DIM, directions, device=device) / 16
        heads, offset = torch.arange(HEADS, **ints), torch.zeros(HEADS, directions, device=device)
        bits = (-(2**15), 2**15)
        self.layers = [
            LayerIndex(
                heads, heads, torch.ones_like(heads),
                torch.randint(*bits, (HEADS, slots, words(FIELDS)), dtype=torch.int16, device=device),
                decode, decode, offset, FIELDS, layer * HEADS, run=run,
            )
            for layer in range(LAYERS)
        ]  # fmt: skip
        self.q = torch.randn(LAYERS, batch, HEADS * GROUP, DIM, device=device).to(DTYPE)
        self.work = Workspace(
            batch, HEADS, GROUP, tokens, batch * tokens, run, max(1, COME // run), device, 0, self.hot
        )
        self.work.plan(self.step)
        self.host = host
        self._attention(device, batch, tokens, cap)

    def _attention(self, device: torch.device, batch: int, tokens: int, cap: int) -> None:
        hot, ints = self.hot, dict(dtype=torch.int32, device=device)
        none = torch.zeros(1, 0, DIM, dtype=DTYPE, device=device)
        role = -1 - torch.arange(HEADS, **ints)
        places = hot.k, hot.v, hot.position, hot.score
        self.buffers = [LayerBuffers(role, none, none, self.host, *places, n * HEADS) for n in range(LAYERS)]
        layouts = [LayerLayout((), tuple(range(HEADS)), (KEPT,) * HEADS, (), n * HEADS) for n in range(LAYERS)]
        shape = batch, GROUP, DIM, SINK, cap - SINK - int(KEPT * tokens), [1] * LAYERS, device, BESIDE
        self.decode = DecodeBuffers(layouts, *shape)
        self.decode.plan(self.step.length, self.step.cap, self.step.page_start, self.starts)
        self.newest = self.slots[self.starts.long() + tokens - 1]
        sizes = (HIDDEN, (GROUP + 2) * HEADS * DIM), (GROUP * HEADS * DIM, HIDDEN), (HIDDEN, 2 * INNER), (INNER, HIDDEN)
        self.weights = [
            [torch.randn(size, dtype=DTYPE, device=device) * size[0] ** -0.5 for size in sizes] for _ in range(LAYERS)
        ]
        self.lane, self.state = Lane(device), torch.randn(batch, HIDDEN, dtype=DTYPE, device=device)

    def _hold(self, places: int, tokens: int, run: int) -> None:
        """Every head's selected rows hold runs; half were last wanted by the prompt, half in the last 500 steps."""
        hot, rows = self.hot, places * run
        heads, used = (
            x[: hot.pages].view(self.step.cap.numel(), -1)[:, SINK:][:, :rows] for x in (hot.position, hot.used)
        )
        for head in range(heads.shape[0]):
            held = torch.randperm((tokens - WINDOW) // run - SINK // run, device=heads.device)[:places] + SINK // run
            heads[head] = (held[:, None] * run + torch.arange(run, device=heads.device)).flatten().int()
            first = used_at_first(torch.rand(places, device=heads.device) / tokens)
            later = torch.randint(tokens - 500, tokens, (places,), dtype=torch.int32, device=heads.device)
            used[head] = torch.where(torch.rand(places, device=heads.device) < 0.5, first, later).repeat_interleave(run)

    def run(self, operations: int) -> None:
        """Layer by layer, with the first so many operations beside attention."""
        x = self.state
        for number, (q, (qkv, o, up, down)) in enumerate(zip(self.q, self.weights, strict=True)):
            k, v = ((x @ qkv)[:, GROUP * HEADS * DIM :]).unflatten(1, (2 * HEADS, DIM)).chunk(2, 1)
            out = self._attend(number, operations, q, k, v).flatten(1)
            x = torch.nn.functional.rms_norm(out @ o, (HIDDEN,))
            gate, value = (x @ up).chunk(2, 1)
            x = torch.nn.functional.rms_norm((torch.nn.functional.silu(gate) * value) @ down, (HIDDEN,))

    def _attend(self, number: int, operations: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """As engine/lazy.py has it."""
        buffers, layer, step, work = self.buffers[number], self.layers[number], self.step, self.work
        store(buffers, self.newest, k, v, host=False, step=step, sink=SINK, ring=self.decode.ring)
        arrivals = None
        if operations > 0:
            self.lane.follow(mark(q.device))
            with self.lane:
                probe(q, layer, self.slots, self.starts, step, DIM**-0.5, SINK, WINDOW, work)
                if operations > 1:
                    choose(layer, step, self.hot, SINK, WINDOW, work)
                if operations > 2:
                    swap_in(layer, self.host, self.slots, self.starts, step, self.hot, SINK, work)
            arrivals = Arrivals(layer, work, self.lane.mark())
        lists = self.slots, step.page_list
        out = decode_attention(q, buffers, *lists, DIM**-0.5, self.decode, number, False, arrivals)
        if arrivals is not None:
            self.lane.follow(mark(q.device))
            with self.lane:
                seat(layer, step, self.hot, work)
            if number == LAYERS - 1:
                self.lane.mark().hold(q.device)
        return out


def measure(
    device: torch.device, host: torch.Tensor, batch: int, tokens: int, run: int
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Seconds per layer by stages, printed and given as they are known."""
    layers = Layers(device, host, batch, tokens, run)
    alone = 0.0
    for what, operations in STAGES.items():
        taken = _fresh(device, layers, operations, due=what != "resting") / LAYERS
        alone = alone or taken
        came, late, *_ = layers.work.counted.tolist()
        name = f"{batch}x{tokens}, runs of {run}: {what}"
        print(f"{name:<40}{1e6 * taken:8.1f} us a layer, {1e6 * (taken - alone):+.1f}", flush=True)
        yield {
            "what": what, "case": f"{batch}x{tokens}", "run": run, "layer_seconds": taken, "more": taken - alone,
            "rows_came": came, "rows_late": late, "workspace_bytes": layers.work.nbytes,
        }  # fmt: skip


def _fresh(device: torch.device, layers: Layers, operations: int, due: bool) -> float:
    """Median seconds of a step, replayed, with new queries each time; counts are those of the last."""
    for layer in layers.layers:
        layer.every.fill_(2)
    layers.step.clock.fill_(int(not due))
    steps = partial(layers.run, operations)
    replay = captured(steps)[0].replay if device.type == "cuda" else steps
    times = []
    for _ in range(ROUNDS):
        layers.q.normal_()
        layers.work.counted.zero_()
        times.append(once(device, replay))
    return statistics.median(times)
