"""Prefix rows on their way back: whole and in order, and never read by the host before they are written."""

from __future__ import annotations

import pytest
import torch

from hetero_sglang.cache.host_store import BLOCK, HostStore
from hetero_sglang.cache.lanes import Mark
from hetero_sglang.transfer.prefix_loader import PrefixLoader


class Written(Mark):
    """A point that the device reaches only when it is waited for: then the rows are there."""

    def __init__(self, host: HostStore, blocks: list[torch.Tensor]) -> None:
        super().__init__(None)
        self.host, self.blocks, self.waited = host, blocks, 0

    def wait(self) -> None:
        self.waited += 1
        for store, values in zip(self.host.blocks, self.blocks, strict=True):
            store.copy_(values)


@pytest.mark.parametrize("scattered", [False, True])
def test_rows_come_in_the_order_of_their_slots(scattered: bool) -> None:
    host = HostStore(200, [2, 0, 3], 8, 8, torch.float32, False)
    blocks = [torch.randn_like(store) for store in host.blocks]
    for store in host.blocks:
        store.normal_()
    slots = torch.randperm(200)[:90] if scattered else torch.arange(30, 120)
    after = Written(host, blocks)
    if not scattered:  # a copy of the device's own: its lane waits, the host does not
        after.wait()
        after.waited = 0
    loader = PrefixLoader(host, torch.device("cpu"))
    loader.begin(slots, after)
    for layer in (0, 2):
        assert torch.equal(loader.take(layer), blocks[layer][slots // BLOCK, :, slots % BLOCK])
        loader.done(layer)
    loader.end()
    assert bool(after.waited) == scattered
    host.close()
