"""Fetched rows in the hot pool: each at its place, dropped ones nowhere, all else untouched."""

from __future__ import annotations

import pytest
import torch

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.ops.triton.publish import publish

NAMES = ("k", "v", "position", "score")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dims", [(16, 16), (64, 24)])
@pytest.mark.parametrize("count", [1, 5, 16, 77])
def test_rows_lie_where_they_were_sent(count: int, dims: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(count)
    pool = HotPool(20, 16, *dims, torch.float32, DEVICE)
    for buffer in (pool.k, pool.v, pool.score):
        buffer.fill_(float("nan"))
    rows = torch.randperm(320, generator=draw)[:count]
    rows[torch.rand(count, generator=draw) < 0.3] = -1
    positions = torch.randint(0, 1 << 30, (count,), generator=draw)
    scores = torch.rand(count, generator=draw)
    k, v = (torch.randn(count, dim, generator=draw) for dim in dims)
    places = torch.stack((rows.int(), positions.int(), scores.view(torch.int32)))
    publish(places.to(DEVICE), k.to(DEVICE), v.to(DEVICE), pool)
    there = rows >= 0
    wanted = {name: getattr(HotPool(20, 16, *dims, torch.float32, "cpu"), name).flatten(0, 1) for name in NAMES}
    for name, values in zip(NAMES, (k, v, positions.int(), scores), strict=True):
        if name != "position":
            wanted[name].fill_(float("nan"))
        wanted[name][rows[there]] = values[there]
        got = getattr(pool, name).flatten(0, 1).cpu()
        assert torch.equal(got.nan_to_num(-7), wanted[name].nan_to_num(-7)), name
