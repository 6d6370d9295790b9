"""Filling working sets on the device puts every row where the torch engine does."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import DIM, Request, make_cache, make_settings, prefill, random_profile
from test_decode_step import DEVICE, device_copy, layer_buffers

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.ops.triton.fill import fill
from hetero_sglang.selection.batched import choose
from hetero_sglang.selection.scores import attention_scores


@pytest.mark.parametrize("seed", range(5))
def test_rows_positions_and_scores_equal_the_torch_engine(seed: int) -> None:
    rng = random.Random(seed)
    settings = make_settings(random_profile(seed, layers=2, heads=4), retrieval="off")
    cache, rule = make_cache(settings), settings.rule
    prompts = [rng.randint(1, 30), rng.randint(64, 200), rng.randint(64, 120)]
    requests, start = [], 1
    for slot, prompt in enumerate(prompts, start=1):
        requests.append(Request(cache, slot, prompt, prompt + 4, torch.arange(start, start + prompt + 4), seed=slot))
        start += prompt + 4
        requests[-1].start()
    prefill(requests, [(0, r.prompt) for r in requests])
    hot = cache.hot
    wanted = [t.clone() for t in (hot.k, hot.v, hot.position, hot.score)]
    for tensor in (hot.k, hot.v, hot.score):
        tensor.fill_(float("nan"))
    hot.position.fill_(-1)
    copied = device_copy(cache)
    hot = copied.hot
    tables = DeviceTables(8, settings.layout.num_compressed, cache.hot.pages, DEVICE)
    for r in requests:
        tables.put(r.slot, r.ws)
        for index, spec in enumerate(settings.layout.layers):
            if not spec.compressed:
                continue
            q, k, v = (t[index][: r.prompt].to(DEVICE) for t in (r.q, r.k, r.v))
            queries = q[-settings.observe :].view(-1, k.shape[1], 2, DIM)
            heads = spec.compressed_index.to(DEVICE)
            scores = attention_scores(queries[:, heads], k[:, heads], DIM**-0.5)
            caps = r.ws.caps[spec.first : spec.first + len(heads)]
            counts = [max(0, cap - rule.sink - rule.window) if cap < r.prompt else 0 for cap in caps]
            selected = choose(scores, counts, rule.sink, r.prompt - rule.window)
            numbers = slice(spec.first, spec.first + len(heads))
            cap, begin = tables.cap[r.slot, numbers], tables.page_start[r.slot, numbers]
            args = (heads.int(), k, v, selected, scores, cap, begin, tables.page_list, max(caps))
            fill(layer_buffers(copied, index), *args, rule.sink, rule.window)
    position, k, v, score = (t.cpu() for t in (hot.position, hot.k, hot.v, hot.score))
    for r in requests:
        for number, cap in enumerate(r.ws.caps):
            rows = r.ws.flat(number, torch.arange(min(cap, r.prompt)))
            assert torch.equal(position.view(-1)[rows], wanted[2].view(-1)[rows])
            assert torch.equal(k.view(-1, DIM)[rows], wanted[0].view(-1, DIM)[rows])
            assert torch.equal(v.view(-1, DIM)[rows], wanted[1].view(-1, DIM)[rows])
            torch.testing.assert_close(score.view(-1)[rows], wanted[3].view(-1)[rows])


def test_lists_survive_a_repack() -> None:
    settings = make_settings(random_profile(3, layers=2, heads=4))
    cache = make_cache(settings, pages=120)
    tables = DeviceTables(8, settings.layout.num_compressed, cache.hot.pages, "cpu")
    kept = cache.start(7, cache.admission.grant(40, 4))
    tables.put(7, kept)
    for _ in range(40):
        tables.put(2, cache.start(2, cache.admission.grant(30, 4)))
        for slot, ws in ((2, cache.requests[2]), (7, kept)):
            for number, pages in enumerate(ws.tables):
                begin = int(tables.page_start[slot, number])
                assert torch.equal(tables.page_list[begin : begin + pages.numel()].long(), pages)
                assert int(tables.cap[slot, number]) == ws.caps[number]
        cache.finish(2)
