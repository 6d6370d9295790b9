"""The device's page lists stay what working sets say, whatever was packed before."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import make_cache, make_settings, random_profile

from hetero_sglang.cache.device_tables import DeviceTables


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
