"""The device's decode step against the torch engine: same requests, same tiers, rows and outputs."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import DIM, GROUP, Request, decode, make_cache, make_settings, prefill, random_profile, table_of

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.ops.base import LayerBuffers
from hetero_sglang.ops.step import DecodeStep
from hetero_sglang.ops.triton.store import store
from hetero_sglang.ops.triton.work import DecodeBuffers

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_copy(cache) -> SimpleNamespace:
    """The cache's stores and pool, copied to the device the kernels run on."""
    pool = {name: getattr(cache.hot, name).to(DEVICE, copy=True) for name in ("k", "v", "position", "score")}
    resident, host = (
        SimpleNamespace(**{name: [t.to(DEVICE, copy=True) for t in getattr(store, name)] for name in names})
        for store, names in ((cache.resident, "kv"), (cache.host, ["blocks"]))
    )
    return SimpleNamespace(settings=cache.settings, hot=SimpleNamespace(**pool), resident=resident, host=host)


def layer_buffers(cache: SimpleNamespace, index: int) -> LayerBuffers:
    spec = cache.settings.layout.layers[index]
    role = torch.empty(len(spec.resident) + len(spec.compressed), dtype=torch.int32)
    role[spec.resident_index] = torch.arange(len(spec.resident), dtype=torch.int32)
    role[spec.compressed_index] = -1 - torch.arange(len(spec.compressed), dtype=torch.int32)
    return LayerBuffers(
        role.to(DEVICE), cache.resident.k[index], cache.resident.v[index], cache.host.blocks[index],
        cache.hot.k, cache.hot.v, cache.hot.position, cache.hot.score, spec.first,
    )  # fmt: skip


def tensors(cache) -> list[torch.Tensor]:
    stores = (*cache.resident.k, *cache.resident.v, *cache.host.blocks)
    return [t.cpu() for t in (*stores, cache.hot.k, cache.hot.v, cache.hot.position, cache.hot.score)]


# One of each kind is enough under the interpreter.
SEEDS = [(0, True), (1, False), *(pytest.param(2 + i, not i, marks=pytest.mark.slow) for i in range(2))]


@pytest.mark.parametrize(("seed", "early"), SEEDS)
def test_a_step_equals_the_torch_engine(seed: int, early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecodeBuffers, "one_wave", early)
    rng = random.Random(seed)
    settings = make_settings(random_profile(seed, layers=2, heads=4))
    cache = make_cache(settings)
    slots = torch.randperm(599, generator=torch.Generator().manual_seed(seed)) + 1
    requests, start = [], 0
    for slot, prompt in enumerate((rng.randint(1, 20), rng.randint(70, 200), rng.randint(20, 63)), start=1):
        requests.append(Request(cache, slot, prompt, prompt + 12, slots[start : start + prompt + 12], seed=seed + slot))
        start += prompt + 12
        requests[-1].start()
    prefill(requests, [(0, r.prompt) for r in requests])
    tables = DeviceTables(8, settings.layout.num_compressed, cache.hot.pages, DEVICE)
    step = DecodeStep(settings, tables, 5, 512, GROUP, DIM)
    table = table_of(requests).to(DEVICE)
    for extra in range(1, 10):
        lengths = [r.prompt + extra for r in requests]
        copied = device_copy(cache)
        wanted = decode(requests, lengths)  # [layer, request, Hq, D]
        for r in requests:
            tables.put(r.slot, r.ws)
        width = 4  # the fourth is padding
        step.fill([r.slot for r in requests], lengths, width, table)
        now = step.plan(width)
        for index in range(2):
            buffers = layer_buffers(copied, index)
            q, k, v = (
                torch.cat([getattr(r, name)[index][n - 1][None] for r, n in zip(requests, lengths, strict=True)])
                for name in "qkv"
            )
            q, k, v = (torch.cat((x, torch.full_like(x[:1], float("nan")))).to(DEVICE) for x in (q, k, v))
            taken = torch.tensor([int(r.token_slots[n - 1]) for r, n in zip(requests, lengths, strict=True)] + [0])
            taken = taken.to(DEVICE)
            store(buffers, taken, k, v, step=now, window=settings.rule.window)
            out = step.kernel.attend(index, q, buffers, now, DIM**-0.5)
            torch.testing.assert_close(out[:3].cpu(), wanted[index], atol=2e-5, rtol=2e-5)
            assert torch.equal(out[3], torch.zeros_like(out[3]))
        for got, want in zip(tensors(copied), tensors(cache), strict=True):
            got, want = (x[1:] if x.shape[0] == 600 else x for x in (got, want))  # row 0 takes padding's writes
            assert torch.equal(got.nan_to_num(-7), want.nan_to_num(-7))
