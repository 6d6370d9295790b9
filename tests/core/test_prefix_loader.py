"""Prefix rows on their way back: whole and in order."""

from __future__ import annotations

import pytest
import torch

from hetero_sglang.cache.counters import Counters
from hetero_sglang.cache.host_layout import BLOCK
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.cache.lanes import mark
from hetero_sglang.ops import reference
from hetero_sglang.transfer.prefix_loader import PrefixLoader


@pytest.mark.parametrize("scattered", [False, True])
def test_rows_come_in_the_order_of_their_slots(scattered: bool) -> None:
    host = HostStore(200, [2, 0, 3], 8, 8, torch.float32, False)
    for store in host.blocks:
        store.normal_()
    slots = torch.randperm(200)[:90] if scattered else torch.arange(30, 120)
    counters = Counters()
    loader = PrefixLoader(reference, host, torch.device("cpu"), counters)
    loader.begin(slots, mark(torch.device("cpu")))
    for layer in (0, 2):
        assert torch.equal(loader.take(layer), host.blocks[layer][slots // BLOCK, :, slots % BLOCK])
        loader.done(layer)
    loader.end()
    assert counters.prefix_rows_copied + counters.prefix_rows_read == 180
    host.close()
