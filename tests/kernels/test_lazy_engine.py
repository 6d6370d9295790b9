"""Heads with a key index on the device engine: they attend over what they hold, and hold what they want most."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import GROUP, Request, dense, held_positions, make_cache
from test_device_engine import DEVICE, extend, step
from test_lazy_heads import HEADS, LAYERS, lazy_settings, naive, slots_of

from hetero_sglang.engine.device_engine import DeviceEngine


@pytest.mark.parametrize("run", [1, 4])
def test_rows_come_in_the_step_that_wants_them(run: int) -> None:
    """Two requests that are compressed and one that is not, chunks and a prefix; padding beside them."""
    cache = make_cache(lazy_settings(3, run), device=DEVICE, on_device=True)
    engine = DeviceEngine(cache, 8, 2048, HEADS * GROUP)
    slots = slots_of(590, 1)
    prompts = (150, 90, 20)
    requests, at = [], 0
    for slot, prompt in enumerate(prompts, start=1):
        requests.append(Request(cache, slot, prompt, prompt + 30, slots[at : at + prompt + 30], seed=slot))
        at += prompt + 30
        requests[-1].start()
    extend(engine, requests, [(0, 100), (0, 90), (0, 20)])
    extend(engine, requests[:1], [(100, 150)])
    for turn in range(1, 13):
        lengths = [prompt + turn for prompt in prompts]
        out = step(engine, requests, lengths, 4)
        engine.write_back.send()
        for row, (request, length) in enumerate(zip(requests, lengths, strict=True)):
            for layer in range(LAYERS):
                for head in range(HEADS):
                    number = layer * HEADS + head
                    held = held_positions(request, number, length)
                    assert held.unique().numel() == held.numel() and held.max() == length - 1
                    q = request.q[layer][length - 1].view(HEADS, GROUP, -1)[head]
                    wanted = dense(q, request.k[layer][held, head], request.v[layer][held, head])
                    got = out[layer, row].view(HEADS, GROUP, -1)[head].cpu()
                    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)
                    places = (request.ws.caps[number] - cache.settings.rule.sink - 6) // run
                    if length <= request.ws.caps[number]:
                        continue
                    scores = naive(request, layer, head, length, run)
                    low, high = cache.settings.rule.sink // run, (length - 6) // run
                    best = scores[low:high].topk(max(1, places // 4))
                    sure = best.values > 1.05 * best.values[-1]  # weights are rounded: the last may differ
                    runs = best.indices[sure] + low
                    assert torch.isin((runs[:, None] * run + torch.arange(run)).flatten(), held).all()
    engine.lazy.count()
    engine.lazy.count()
    assert cache.counters.fetched_rows > 0 and cache.counters.late_rows == 0
    cache.check_integrity()
