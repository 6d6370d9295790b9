"""A step's new rows in the host store: each in its own place, and nothing else touched."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import random_profile
from test_decode_step import DEVICE

from hetero_sglang.cache.host_store import BLOCK, HostStore
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.working_set import ring_row
from hetero_sglang.config.layout import build_layout
from hetero_sglang.ops.base import HostPlaces, StepTables
from hetero_sglang.ops.triton.write_back import locate, write_back

PAGE, WINDOW, SLOTS = 4, 6, 64


@pytest.mark.parametrize("seed", range(3))
def test_every_new_row_comes_to_its_slot_and_head(seed: int) -> None:
    rng = random.Random(seed)
    profile = random_profile(seed, layers=4, heads=5)
    layers = build_layout(profile, (profile.floor + 1) / 2).layers
    heads = sum(len(x.compressed) for x in layers)
    batch = 300 // heads + 2  # more rows than one round of the programs takes
    dim, v_dim = 16, 8
    host = HostStore(SLOTS, [len(x.compressed) for x in layers], dim, v_dim, torch.float32, DEVICE.type == "cuda")
    for tensor in host.blocks:
        tensor.fill_(float("nan"))
    caps = torch.tensor([[rng.randint(8, 24) for _ in range(heads)] for _ in range(batch)], dtype=torch.int32)
    lengths = torch.tensor([rng.choice((0, rng.randint(1, 60))) for _ in range(batch)], dtype=torch.int32)
    pages = -(-24 // PAGE)
    page_list = torch.randperm(batch * heads * pages, dtype=torch.int32)
    page_start = torch.arange(batch * heads, dtype=torch.int32).view(batch, heads) * pages
    hot = HotPool(page_list.numel(), PAGE, dim, v_dim, torch.float32, DEVICE)
    hot.k.normal_()
    hot.v.normal_()
    slots = torch.full((batch, 60), -5, dtype=torch.int32)
    taken = torch.randperm(SLOTS)[:batch]
    for b in range(batch):
        slots[b, max(int(lengths[b]) - 1, 0)] = taken[b]
    starts = torch.arange(batch, dtype=torch.int32) * 60
    step = StepTables(*(t.to(DEVICE) for t in (lengths, caps, page_start, page_list)))
    new = locate(step, slots.to(DEVICE).view(-1), starts.to(DEVICE), WINDOW, PAGE)
    write_back(new, hot, HostPlaces.of(host.blocks, layers, DEVICE))
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    wanted = [torch.full_like(t, float("nan")) for t in host.blocks]
    k, v = hot.k.view(-1, dim).cpu(), hot.v.view(-1, v_dim).cpu()
    for b in range(batch):
        for layer, spec in enumerate(layers):
            for c in range(len(spec.compressed) if lengths[b] else 0):
                number = spec.first + c
                row = int(ring_row(int(lengths[b]) - 1, int(caps[b, number]), WINDOW))
                flat = int(page_list[page_start[b, number] + row // PAGE]) * PAGE + row % PAGE
                wanted[layer][taken[b] // BLOCK, c, taken[b] % BLOCK] = torch.cat((k[flat], v[flat]))
    for got, want in zip(host.blocks, wanted, strict=True):
        assert torch.equal(got.nan_to_num(-7), want.nan_to_num(-7))
    host.close()
