"""A decode step's items: every token of every row in one of them, and this step's token named in its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import make_settings, random_profile
from test_device_engine import DEVICE

from hetero_sglang.cache.working_set import ring_row
from hetero_sglang.ops.triton.work import DecodeBuffers, DecodeShape

HEADS, SINK, WINDOW = 4, 2, 6


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_items_cover_every_row_once_and_name_this_step_s_token(data: st.DataObject) -> None:
    layers = make_settings(random_profile(data.draw(st.integers(0, 9)), layers=2, heads=HEADS)).layout.layers
    lengths = data.draw(st.lists(st.integers(0, 90), min_size=1, max_size=5))
    heads = sum(len(layer.compressed) for layer in layers)
    caps = data.draw(st.lists(st.integers(1, 60), min_size=len(lengths) * heads, max_size=len(lengths) * heads))
    cap = torch.tensor(caps, dtype=torch.int32).view(len(lengths), heads)
    opens = torch.arange(cap.numel(), dtype=torch.int32).view_as(cap) * 100
    starts = 90 * torch.arange(len(lengths), dtype=torch.int32)
    shape = DecodeShape(block=data.draw(st.sampled_from((1, 4, 16))), items_per_processor=data.draw(st.integers(1, 12)))
    work = DecodeBuffers(layers, len(lengths), 2, 16, SINK, WINDOW, [1] * len(layers), DEVICE, shape)
    work.plan(*(x.to(DEVICE) for x in (torch.tensor(lengths, dtype=torch.int32), cap, opens, starts)))
    for number, layer in enumerate(layers):
        items = [item[:7] for item in work.described[number].tolist()]
        first = work.first_item[number].tolist()
        assert all(item[0] < 0 for item in items[first[-1] :])
        for row in range(len(lengths) * HEADS):
            request, place = divmod(row, HEADS)
            compressed = place - len(layer.resident)
            mine = items[first[row] : first[row + 1]]
            rows, opening = lengths[request], int(starts[request])
            if compressed >= 0:
                kept = int(cap[request, layer.first + compressed])
                newest = int(ring_row(lengths[request] - 1, kept, SINK, WINDOW))
                rows, opening = min(rows, kept), int(opens[request, layer.first + compressed])
            else:
                newest = lengths[request] - 1
            head = (layer.resident + layer.compressed)[place]
            assert [item[:3] for item in mine] == [[row, head, opening]] * len(mine)
            assert [item[5] for item in mine] == [int(len(mine) == 1)] * len(mine)
            covered = [token for item in mine for token in range(item[3], item[4])]
            assert covered == list(range(rows))
            assert [item[6] for item in mine if item[6] >= 0] == ([newest] if rows else [])
            assert all(item[3] <= item[6] < item[4] for item in mine if item[6] >= 0)
