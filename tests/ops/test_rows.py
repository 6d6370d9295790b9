"""Where rows go, by the kernels and by torch: the same places and the same bytes, and nothing else is touched."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

from hetero_sglang.cache.host_layout import BLOCK
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.config.layout import LayerLayout
from hetero_sglang.ops import base, reference, triton
from hetero_sglang.ops.base import HostPlaces, LayerBuffers, StepTables

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DIM, V_DIM, PAGE, SLOTS, SINK = 16, 8, 4, 160, 2
SPECS = [
    LayerLayout((0, 3), (2, 1), (0.5, 0.5), (), 0),
    LayerLayout((), (3, 0, 1, 2), (0.5,) * 4, (), 2),
    LayerLayout((2, 1, 0, 3), (), (), (), 6),
]
HEADS, NUMBERS = 4, 6


@dataclass
class World:
    """Buffers of all layers, poisoned, and a decode step's tables."""

    layers: list[LayerBuffers]
    hot: HotPool
    blocks: list[torch.Tensor]
    step: StepTables
    slots: torch.Tensor
    starts: torch.Tensor
    device: torch.device

    def tensors(self) -> list[torch.Tensor]:
        """What may be written; slot 0 takes padding's writes."""
        stores = [x[1:] for layer in self.layers for x in (layer.resident_k, layer.resident_v)]
        hot = (self.hot.k, self.hot.v, self.hot.position, self.hot.score)
        return [t.cpu().nan_to_num(-7) for t in (*stores, *hot, *(b[:, :, 1:] for b in self.blocks))]


def worlds(seed: int, dtype: torch.dtype = torch.float32) -> tuple[World, World]:
    """The same for torch and for the kernels."""
    rng, made = random.Random(seed), []
    lengths = [rng.choice((0, rng.randint(1, 60))) for _ in range(5)]
    caps = [[rng.randint(8, 40) for _ in range(NUMBERS)] if n else [0] * NUMBERS for n in lengths]
    pages = 11 * 5 * NUMBERS
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(seed))
    every = torch.randperm(SLOTS - 1, generator=torch.Generator().manual_seed(seed + 1)) + 1
    for device in (torch.device("cpu"), DEVICE):
        hot = HotPool(pages, PAGE, DIM, V_DIM, dtype, device)
        for tensor in (hot.k, hot.v, hot.score):
            tensor.fill_(float("nan"))
        blocks, layers = [], []
        for spec in SPECS:
            block = torch.full((SLOTS // BLOCK, len(spec.compressed), BLOCK, DIM + V_DIM), float("nan"), dtype=dtype)
            blocks.append(block.pin_memory() if device.type == "cuda" and block.numel() else block)
            role = torch.empty(HEADS, dtype=torch.int32)
            role[list(spec.resident)] = torch.arange(len(spec.resident), dtype=torch.int32)
            role[list(spec.compressed)] = -1 - torch.arange(len(spec.compressed), dtype=torch.int32)
            k, v = (torch.full((SLOTS, len(spec.resident), d), float("nan"), dtype=dtype) for d in (DIM, V_DIM))
            layers.append(
                LayerBuffers(role.to(device), k.to(device), v.to(device), blocks[-1], hot.k, hot.v, hot.position,
                             hot.score, spec.first)
            )  # fmt: skip
        start = torch.arange(5 * NUMBERS).view(5, NUMBERS) * 11
        tables = (torch.tensor(lengths), torch.tensor(caps), start, order)
        step = StepTables(*(t.int().to(device) for t in (*tables, *[torch.zeros(1)] * 4)))
        slots, starts = torch.full((5 * 60,), 10_000, dtype=torch.int32), torch.arange(5, dtype=torch.int32) * 60
        for b, length in enumerate(lengths):
            slots[b * 60 + max(0, length - 1)] = every[b] if length else 0
        made.append(World(layers, hot, blocks, step, slots.to(device), starts.to(device), device))
    return made[0], made[1]


def same(one: World, other: World) -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    for want, have in zip(one.tensors(), other.tensors(), strict=True):
        assert torch.equal(want, have)


def test_layers_know_their_heads() -> None:
    for spec, layer in zip(SPECS, worlds(0)[0].layers, strict=True):
        assert tuple(layer.resident.tolist()) == spec.resident and tuple(layer.compressed.tolist()) == spec.compressed
        assert layer.heads.tolist() == list(spec.compressed) and layer.numbers.start == spec.first


def test_both_modules_have_the_contract_s_names() -> None:
    for module in (reference, triton):
        assert sorted(module.__all__) == sorted(base.NAMES)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ring", [6, 1 << 30])
def test_a_step_s_rows_and_their_way_back(seed: int, ring: int) -> None:
    """K and V are slices of wider rows; padding has NaN."""
    one, other = worlds(seed)
    given = torch.randn(5, 2 * HEADS, DIM, generator=torch.Generator().manual_seed(seed))
    given[one.step.length == 0] = float("nan")
    newest = one.starts + (one.step.length - 1).clamp(min=0)
    for ops, world in ((reference, one), (triton, other)):
        rows = given.to(world.device)
        taken = world.slots[newest.long().to(world.device)]
        for layer in world.layers:
            k, v = rows[:, :HEADS], rows[:, HEADS:, :V_DIM]
            ops.store(layer, taken, k, v.contiguous(), host=False, step=world.step, sink=SINK, ring=ring)
        found = ops.locate(world.step, world.slots, world.starts, SINK, ring, PAGE)
        ops.write_back(found, world.hot, HostPlaces.of(world.blocks, SPECS, world.device))
    same(one, other)


@pytest.mark.parametrize("count", [0, 1, 70])
def test_a_chunk_s_rows(count: int) -> None:
    one, other = worlds(9)
    generator = torch.Generator().manual_seed(count)
    k, v = (torch.randn(count, HEADS, dim, generator=generator) for dim in (DIM, V_DIM))
    taken = torch.randperm(SLOTS, generator=generator)[:count]
    for ops, world in ((reference, one), (triton, other)):
        for layer in world.layers:
            ops.store(layer, *(t.to(world.device) for t in (taken, k, v)))
    same(one, other)


@pytest.mark.parametrize("length", [5, 30, 90])
@pytest.mark.parametrize("ring", [6, 1 << 30])
@pytest.mark.parametrize("restored", [False, True])
def test_filling_a_prompt_s_working_sets(length: int, ring: int, restored: bool) -> None:
    """Heads that hold all, heads that choose, and one that is sinks and ring alone; from the host store, the same."""
    one, other = worlds(2)
    generator = torch.Generator().manual_seed(length)
    k, v = (torch.randn(length, HEADS, dim, generator=generator) for dim in (DIM, V_DIM))
    scores = torch.rand(4, length, generator=generator)
    slots = 1 + torch.randperm(SLOTS - 1, generator=generator)[:length].int()
    cap = torch.tensor([40, 8, 11, 24], dtype=torch.int32)
    turning = (cap - SINK).clamp(1, ring)
    selected = torch.full((4, 40), length, dtype=torch.int32)
    for c in range(4):
        count, room = int(cap[c] - SINK - turning[c]), max(0, length - int(turning[c]) - SINK)
        if int(cap[c]) < length:
            selected[c, :count] = (torch.randperm(room, generator=generator)[:count] + SINK).sort().values
    for ops, world in ((reference, one), (triton, other)):
        layer = world.layers[1]
        keys, values, chosen, worth, caps, where = (t.to(world.device) for t in (k, v, selected, scores, cap, slots))
        start = world.step.page_start[0, layer.numbers].contiguous()
        tables = caps, start, world.step.page_list, 40, SINK, ring
        if restored and world is other:
            ops.store(layer, where, keys, values, resident=False)
            reference.store(one.layers[1], slots, k, v, resident=False)
            ops.restore(layer, where, length, chosen, worth, *tables)
        else:
            ops.fill(layer, layer.heads, keys, values, chosen, worth, *tables)
    if restored:
        again, _ = worlds(2)
        layer = again.layers[1]
        reference.store(layer, slots, k, v, resident=False)
        start = again.step.page_start[0, layer.numbers].contiguous()
        reference.restore(layer, slots, length, selected, scores, cap, start, again.step.page_list, 40, SINK, ring)
        same(one, again)
    same(one, other)
    held = one.hot.position.view(-1)
    for c, rows in enumerate(cap.tolist()):
        row = torch.arange(min(rows, length))
        flat = one.step.page_list[one.step.page_start[0, 2 + c] + row // PAGE].long() * PAGE + row % PAGE
        assert held[flat].unique().numel() == min(rows, length)


@pytest.mark.parametrize("seed", range(2))
def test_prompts_whose_heads_hold_all(seed: int) -> None:
    """Of a pass's tokens those of some requests go to their rows, each token's at its number; the others' to none."""
    one, other = worlds(seed)
    g = torch.Generator().manual_seed(seed)
    counts, prefixes, requests = [9, 5, 20, 1], [0, 3, 0, 11], [2, -1, 0, 4]
    request = torch.cat([torch.full((n,), r) for n, r in zip(counts, requests, strict=True)]).int()
    token = torch.cat([torch.arange(p, p + n) for n, p in zip(counts, prefixes, strict=True)]).int()
    k, v = (torch.randn(sum(counts), HEADS, d, generator=g) for d in (DIM, V_DIM))
    for ops, world in ((reference, one), (triton, other)):
        for layer in world.layers:
            if layer.heads.numel():
                new_k, new_v, mine, which = (each.to(world.device) for each in (k, v, request, token))
                ops.hold(layer, new_k, new_v, mine, which, world.step.page_start, world.step.page_list)
    same(one, other)
    layer, new = one.layers[1], 9 + 5 + 4  # the fifth token of the request in slot 0
    for c, head in enumerate(layer.heads.tolist()):
        start = int(one.step.page_start[0, layer.first + c])
        flat = int(one.step.page_list[start + 4 // PAGE]) * PAGE + 4 % PAGE
        assert torch.equal(one.hot.k.view(-1, DIM)[flat], k[new, head]) and one.hot.position.view(-1)[flat] == 4
        assert torch.equal(one.hot.v.view(-1, V_DIM)[flat], v[new, head]) and one.hot.score.view(-1)[flat] == 0
    written = (~one.hot.k.view(-1, DIM)[:, 0].isnan()).sum()
    assert written == NUMBERS * (sum(counts) - 5)


def test_token_slots_of_a_batch() -> None:
    table = torch.randint(1000, (6, 70), dtype=torch.int32)
    requests, lengths = torch.tensor([4, 0, 2], dtype=torch.int32), torch.tensor([70, 0, 33], dtype=torch.int32)
    starts, found = torch.arange(3, dtype=torch.int32) * 70, []
    for ops, device in ((reference, "cpu"), (triton, DEVICE)):
        out = torch.full((210,), -1, dtype=torch.int32, device=device)
        ops.copy_slots(*(t.to(device) for t in (table, requests, lengths, starts)), 70, out)
        found.append(out.cpu())
    assert torch.equal(*found) and int((found[0] >= 0).sum()) == 103
