"""Time per layer of what a lazy step does beside attention: `probe`, `choose`, `swap_in`, `seat`, in one CUDA graph.

Llama-3.1-8B's heads (8 KV heads of 128, 4 query heads each), 15% of the rows kept. Every layer has an index and hot
rows of its own, so that the card's cache serves none of them; queries are new before each replay, so that rows come.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.copies import once
from benchmarks.kernels import captured
from hetero_sglang.cache.host_store import BLOCK
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.ops.base import LayerIndex, StepTables
from hetero_sglang.ops.reference.choose import used_at_first
from hetero_sglang.ops.triton.choose import choose
from hetero_sglang.ops.triton.probe import probe
from hetero_sglang.ops.triton.swap_in import seat, swap_in
from hetero_sglang.ops.triton.workspace import Workspace
from hetero_sglang.profile.index_plan import Fields, words

HEADS, GROUP, DIM, DTYPE = 8, 4, 128, torch.bfloat16
FIELDS: Fields = ((8, 4), (24, 2))
LAYERS, KEPT, SINK, WINDOW, PAGE, ROUNDS = 8, 0.15, 16, 64, 16, 7
COME = 16  # rows that may come to a head in a step
OPERATIONS = ("probe", "choose", "swap_in", "seat")


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
            opening.transpose(0, 1).flatten(1).contiguous(), lists, lists[:1],
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
        """The first so many of OPERATIONS, layer by layer."""
        for layer, q in zip(self.layers, self.q, strict=True):
            probe(q, layer, self.slots, self.starts, self.step, DIM**-0.5, SINK, WINDOW, self.work)
            if operations > 1:
                choose(layer, self.step, self.hot, SINK, WINDOW, self.work)
            if operations > 2:
                swap_in(layer, self.host, self.slots, self.starts, self.step, self.hot, SINK, self.work)
            if operations > 3:
                seat(layer, self.step, self.hot, self.work)


def measure(
    device: torch.device, host: torch.Tensor, batch: int, tokens: int, run: int
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Seconds per layer of each operation after those before it, printed and given as they are known."""
    layers = Layers(device, host, batch, tokens, run)
    before = 0.0
    for count, what in enumerate(OPERATIONS, 1):
        taken = _fresh(device, layers, count) / LAYERS
        came, late, *_ = layers.work.counted.tolist()
        print(f"{batch}x{tokens}, runs of {run}: {what:<8}{1e6 * (taken - before):8.1f} us a layer", flush=True)
        yield {
            "what": what, "case": f"{batch}x{tokens}", "run": run, "layer_seconds": taken - before,
            "with_those_before": taken, "rows_came": came, "rows_late": late, "workspace_bytes": layers.work.nbytes,
        }  # fmt: skip
        before = taken


def _fresh(device: torch.device, layers: Layers, operations: int) -> float:
    """Median seconds of so many operations, replayed, with new queries each time; counts are those of the last."""
    steps = partial(layers.run, operations)
    replay = captured(steps)[0].replay if device.type == "cuda" else steps
    times = []
    for _ in range(ROUNDS):
        layers.q.normal_()
        layers.work.counted.zero_()
        times.append(once(device, replay))
    return statistics.median(times)
