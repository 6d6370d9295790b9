"""On a device: ranked anchors are not asked about again too early, nor rows overwritten before they are read."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import DIM, GROUP, make_cache, make_settings, random_profile

from hetero_sglang.transfer import device_fetcher
from hetero_sglang.transfer.client import ClientStats, Scored
from hetero_sglang.transfer.fetcher import Anchor, PendingFetch, Swap
from hetero_sglang.transfer.ring import Segment
from hetero_sglang.transfer.staging import StagingRing


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


class Streams:
    """Streams that remember which scatters their work comes after."""

    def __init__(self) -> None:
        self.after: dict[str, set[int]] = {"forward": set(), "schedule": set()}
        self.current = "forward"
        self.scatters = 0

    def publish(self, *args: object) -> None:
        self.scatters += 1
        self.after[self.current].add(self.scatters)

    def mark(self, device: object) -> SimpleNamespace:
        known = set(self.after[self.current])
        return SimpleNamespace(passed=True, known=known, hold=lambda device: self.after[self.current].update(known))


@pytest.mark.parametrize(
    "streams", [("forward", "schedule", "forward", "schedule"), ("schedule", "forward", "forward")]
)
def test_the_mirror_is_written_after_every_scatter_whatever_stream_it_ran_on(
    streams: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark taken where a poll found nothing to scatter, or in another stream, would let a copy overtake a scatter."""
    world = Streams()
    monkeypatch.setattr(device_fetcher, "mark", world.mark)
    monkeypatch.setattr(device_fetcher, "publish", world.publish)
    cache = make_cache(make_settings(random_profile(4, layers=3, heads=5), drift_threshold=0.9), on_device=True)
    fetcher, ws = cache.fetcher, cache.start(1, cache.admission.grant(150, 10))
    ring = StagingRing(64, DIM, DIM, cache.hot.k.dtype)
    fetcher.client = SimpleNamespace(ring=ring, poll=list, release=lambda ticket: None, stats=ClientStats())
    slots, rows = torch.arange(4), ws.flat(0, ws.selected_rows(0))[:4]
    swap = Swap(ws, 0, 0, 0, rows, torch.arange(4), torch.ones(4), slots)
    for number, stream in enumerate(streams, start=1):
        k, v = ring.views(Segment(0, 4))
        pending = PendingFetch([swap], slots, cache.host.stamp(slots))
        world.current = stream
        fetcher.landings.append(device_fetcher.Landing(pending, number, k, v, world.mark(None)))
        fetcher.publish()
        world.current = "schedule" if stream == "forward" else "forward"
        gone = PendingFetch([replace(swap, ws=SimpleNamespace(alive=False, busy=set()))], slots, pending.generations)
        fetcher.landings.append(device_fetcher.Landing(gone, number, k, v, world.mark(None)))
        fetcher.publish()  # nothing to scatter
        assert fetcher.scattered.known == set(range(1, number + 1)), "the next copy follows this mark alone"
