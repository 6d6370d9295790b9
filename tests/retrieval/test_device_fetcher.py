"""Anchors that the worker has ranked: nobody asks about them again before their rows are chosen."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import DIM, GROUP, make_cache, make_settings, random_profile

from hetero_sglang.retrieval.client import Scored
from hetero_sglang.retrieval.fetcher import Anchor


def test_a_ranked_anchor_is_busy_until_its_rows_are_chosen() -> None:
    cache = make_cache(make_settings(random_profile(4, layers=3, heads=5), drift_threshold=0.9), on_device=True)
    fetcher, ws = cache.fetcher, cache.start(1, cache.admission.grant(150, 10))
    ws.slots = torch.arange(1, 151)
    asked: list[list[int]] = []
    fetcher.client = SimpleNamespace(score=lambda slots, items: asked.append([i.topk for i in items]) or len(asked))
    anchors = [Anchor(2, head, number, torch.zeros(GROUP, DIM)) for head, number in ((0, 3), (1, 4))]
    fetcher.refresh(ws, anchors)
    assert len(asked) == 1 and ws.busy == {3, 4}
    positions = torch.arange(5, dtype=torch.int32)
    fetcher._complete(Scored(1, [positions] * 2, [torch.ones(5)] * 2))
    assert [r.number for r in fetcher.ranked] == [3, 4] and not fetcher.scores
    fetcher.refresh(ws, anchors)
    assert len(asked) == 1 and ws.busy == {3, 4}, "asked again while its rows wait to be chosen"
