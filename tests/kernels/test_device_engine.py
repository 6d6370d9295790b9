"""The device engine against the torch engine through whole lives of requests: chunks, prefixes, decode steps."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import DIM, GROUP, Request, decode, make_cache, make_settings, prefill, random_profile, table_of

from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.engine.device_engine import DeviceEngine
from hetero_sglang.engine.plan import plan_extend

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_cache(cache: TieredCache) -> TieredCache:
    """An empty cache of the same sizes whose device tiers are on the kernels' device."""
    return make_cache(cache.settings, slots=cache.host.rows, pages=cache.hot.pages, device=DEVICE, on_device=True)


def extend(engine: DeviceEngine, requests: list[Request], spans: list[tuple[int, int]]) -> list[list[torch.Tensor]]:
    counts = [b - a for a, b in spans]
    cache = engine.cache
    table = table_of(requests)
    plan = plan_extend(cache, [r.slot for r in requests], [b for _, b in spans], counts, table)
    engine.begin_extend(plan)
    outputs = []
    for layer in range(len(engine.layers)):
        q, k, v = (
            torch.cat([getattr(r, name)[layer][a:b] for r, (a, b) in zip(requests, spans, strict=True)]).to(DEVICE)
            for name in "qkv"
        )
        slots = torch.cat([r.token_slots[a:b] for r, (a, b) in zip(requests, spans, strict=True)]).to(DEVICE)
        outputs.append(list(engine.extend(layer, slots, q, k, v, DIM**-0.5).split(counts)))
    return outputs


def step(engine: DeviceEngine, requests: list[Request], lengths: list[int], width: int) -> torch.Tensor:
    buffers = engine.eager(width, max(lengths))
    engine.begin_decode(buffers, [r.slot for r in requests], lengths, width, table_of(requests).to(DEVICE))
    tables = buffers.plan(width)
    outputs = []
    for layer in range(len(engine.layers)):
        q, k, v = (
            torch.stack([getattr(r, name)[layer][n - 1] for r, n in zip(requests, lengths, strict=True)])
            for name in "qkv"
        )
        rows = torch.cat((q, k, v), 1)  # as a model's qkv: slices of one row
        rows = torch.cat((rows, torch.full_like(rows[: width - len(rows)], float("nan")))).to(DEVICE)
        q, k, v = rows.split([q.shape[1], k.shape[1], v.shape[1]], 1)
        slots = [int(r.token_slots[n - 1]) for r, n in zip(requests, lengths, strict=True)]
        slots = torch.tensor(slots + [0] * (width - len(slots))).to(DEVICE)
        outputs.append(engine.decode(layer, buffers, tables, slots, q, k, v, DIM**-0.5)[: len(requests)])
    return torch.stack(outputs)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
def test_outputs_equal_through_a_request_s_life(seed: int) -> None:
    rng = random.Random(seed)
    settings = make_settings(random_profile(seed, layers=3, heads=4))
    theirs = make_cache(settings)
    ours = device_cache(theirs)
    engine = DeviceEngine(ours, 8, 2048, 4 * GROUP)
    # slots in runs for even seeds, scattered for odd ones: both ways of bringing a prefix back
    slots = torch.arange(1, 600) if seed % 2 == 0 else torch.randperm(599) + 1
    prompts, pairs, start = [rng.randint(1, 20), rng.randint(70, 200), rng.randint(64, 150)], [], 0
    for slot, prompt in enumerate(prompts, start=1):
        mine = slots[start : start + prompt + 10]
        both = [Request(c, slot, prompt, prompt + 10, mine, seed=slot) for c in (theirs, ours)]
        for request in both:
            request.start()
        pairs.append(both)
        start += prompt + 10
    cuts = [sorted({0, *(rng.randint(0, p) for _ in range(rng.randint(0, 3))), p}) for p in prompts]
    for turn in range(max(map(len, cuts)) - 1):
        spans = [(c[turn], c[turn + 1]) if turn + 1 < len(c) else None for c in cuts]
        live = [i for i, span in enumerate(spans) if span]
        given = [spans[i] for i in live]
        wanted = prefill([pairs[i][0] for i in live], given)
        got = extend(engine, [pairs[i][1] for i in live], given)
        for wanted_layer, got_layer in zip(wanted, got, strict=True):
            for want, have in zip(wanted_layer, got_layer, strict=True):
                torch.testing.assert_close(have.cpu(), want, atol=3e-5, rtol=3e-5)
    for extra in range(1, 9):
        lengths = [p + extra for p in prompts]
        wanted = decode([p[0] for p in pairs], lengths)
        got = step(engine, [p[1] for p in pairs], lengths, 4)
        torch.testing.assert_close(got.cpu(), wanted, atol=3e-5, rtol=3e-5)
    engine.write_back.send()
    engine.write_back.latest.wait()
    for want, have in zip(theirs.host.blocks, ours.host.blocks, strict=True):
        assert torch.equal(want[1:].nan_to_num(-7), have[1:].nan_to_num(-7))
    assert torch.equal(theirs.hot.position, ours.hot.position.cpu())


@pytest.mark.parametrize("beside", [False, True])
def test_a_request_without_a_prompt_is_the_torch_engine_s(beside: bool) -> None:
    theirs = make_cache(make_settings(random_profile(3, layers=2, heads=2)))
    ours = device_cache(theirs)
    engine = DeviceEngine(ours, 8, 2048, 2 * GROUP)
    prompts = [0, 70] if beside else [0]
    pairs = [
        [Request(c, slot, prompt, prompt + 4, torch.arange(100 * slot, 100 * slot + prompt + 4), slot) for c in both]
        for slot, (prompt, both) in enumerate(((p, (theirs, ours)) for p in prompts), start=1)
    ]
    for request in (r for pair in pairs for r in pair):
        request.start()
    spans = [(0, prompt) for prompt in prompts]
    wanted = prefill([pair[0] for pair in pairs], spans)
    got = extend(engine, [pair[1] for pair in pairs], spans)
    for want, have in zip((o for layer in wanted for o in layer), (o for layer in got for o in layer), strict=True):
        torch.testing.assert_close(have.cpu(), want, atol=3e-5, rtol=3e-5)
    for extra in range(1, 4):
        lengths = [prompt + extra for prompt in prompts]
        have = step(engine, [pair[1] for pair in pairs], lengths, len(prompts))
        torch.testing.assert_close(have.cpu(), decode([pair[0] for pair in pairs], lengths), atol=3e-5, rtol=3e-5)
