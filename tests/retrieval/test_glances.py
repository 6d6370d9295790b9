"""What a look covers: its work as the device gets it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import GROUP, make_cache, make_settings, random_profile

from hetero_sglang.engine.glances import Crowd, Subject


@pytest.mark.parametrize("seed", range(4))
def test_every_array_begins_at_16_bytes_however_many_requests_look(seed: int) -> None:
    cache = make_cache(make_settings(random_profile(seed, layers=3, heads=5)))
    crowd = Crowd(cache.settings.layout, cache.resident)
    for count in range(1, 6):
        slots, lengths = list(range(7, 7 + count)), [100 + 3 * n for n in range(count)]
        queue = [
            Subject(SimpleNamespace(slot=slot), row, length)
            for row, (slot, length) in enumerate(zip(slots, lengths, strict=True))
        ]
        glance, views = crowd.glance(queue, 1 << 20, GROUP)
        assert not queue and glance.longest == max(lengths)
        arrays = [value for value in vars(glance).values() if isinstance(value, torch.Tensor)]
        assert len(arrays) == 8 and not any(array.data_ptr() % 16 for array in arrays)
        assert glance.slot.tolist() == slots and glance.length.tolist() == lengths
        assert glance.row.tolist() == list(range(count))
        pivots = crowd.pivots.place.numel()
        assert glance.item_pivot.tolist() == list(range(pivots)) * count
        assert glance.item_request.tolist() == [n for n in range(count) for _ in range(pivots)]
        assert glance.pair_number.tolist() == crowd.numbers.tolist() * count == [
            number for view in views for number in view.numbers.tolist()
        ]  # fmt: skip
        starts = glance.start.tolist()
        room = [(GROUP + 1) * lengths[request] for request in glance.item_request.tolist()]
        assert starts == [sum(room[:n]) for n in range(len(room))]
        for view, mine in zip(views, glance.pair_item.view(count, -1), strict=True):
            assert view.scores.tolist() == [starts[item] + GROUP * view.length for item in mine.tolist()]
