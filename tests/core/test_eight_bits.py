"""Stores of 8 bits: what they hold exactly is attended to, chosen and fetched as in wide ones; the rest saturates."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from core_helpers import Request, decode, engine_of, make_cache, make_settings, prefill, random_profile
from test_lazy_heads import lazy_settings, slots_of
from test_resumed_turns import turn

from hetero_sglang.cache.narrow import narrowed
from hetero_sglang.config.settings import Settings
from hetero_sglang.ops import reference, triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EIGHT = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def life(
    settings: Settings, dtype: torch.dtype, given: torch.dtype, ops: ModuleType, steps: int
) -> tuple[list[torch.Tensor], dict]:
    """What two requests' tokens attend to, whose keys and values are numbers of `given`, in stores of `dtype`: prompts
    in two passes, `steps`, then a next turn of the first, or a new request with the other's prefix. And what was
    counted.
    """
    cache = make_cache(settings, device=DEVICE if ops is triton else "cpu", dtype=dtype)
    engine_of(cache, ops)
    slots = slots_of(560, 3)
    one, two = Request(cache, 1, 150, 260, slots[:260], 5), Request(cache, 2, 90, 200, slots[260:460], 6)
    for request in (one, two):
        for stores in (request.k, request.v):
            stores[:] = [narrowed(values * 3, given).float() for values in stores]
        request.start()
    out = [each for layer in prefill([one, two], [(0, 100), (0, 90)]) for each in layer]
    out += [each for layer in prefill([one], [(100, 150)]) for each in layer]
    out += [decode([one, two], [150 + step, 90 + step]) for step in range(1, steps)]
    if cache.index is not None:
        next_turn = turn(cache, one, 3, 149 + steps, 180)
        assert next_turn is not None
        out += [each for layer in prefill([next_turn], [(148 + steps, 180)]) for each in layer]
        out += [decode([next_turn, two], [180 + step, 89 + steps + step]) for step in range(1, 3)]
    else:
        other = Request(cache, 3, 140, 170, torch.cat((two.token_slots[:90], slots[460:540])), 6)
        other.q, other.k, other.v = two.q, two.k, two.v
        other.start()
        out += [each for layer in prefill([other], [(90, 140)]) for each in layer]
        out += [decode([other], [140 + step]) for step in range(1, 3)]
    engine_of(cache).poll()
    return out, vars(cache.counters)


def ways() -> Iterator[Any]:
    """Of the kernels one of each kind and one of each way, where they are interpreted: each takes a minute."""
    for way, (name, given) in product(("index", "runs", "pivots"), EIGHT.items()):
        yield pytest.param(way, given, reference, 12, id=f"{way}-{name}-reference")
        quick = DEVICE.type == "cuda" or (way, name) in (("index", "e4m3"), ("pivots", "e5m2"))
        marks = () if quick else pytest.mark.slow
        yield pytest.param(
            way, given, triton, 12 if DEVICE.type == "cuda" else 4, id=f"{way}-{name}-triton", marks=marks
        )


@pytest.mark.parametrize(("way", "given", "ops", "steps"), ways())
def test_what_8_bits_hold_exactly_is_as_in_wide_stores(
    way: str, given: torch.dtype, ops: ModuleType, steps: int
) -> None:
    options = {"drift_threshold": 1.0, "monitor_interval": 2, "anchor_interval": 0}
    made = (
        make_settings(random_profile(4, layers=2, heads=6), **options)
        if way == "pivots"
        else lazy_settings(3, 4 if way == "runs" else 1)
    )
    (wide, counted), (narrow, told) = (life(made, dtype, given, ops, steps) for dtype in (torch.float32, given))
    assert counted["fetched_bytes"] == 4 * told["fetched_bytes"] > 0
    for each in (counted, told):
        del each["fetched_bytes"], each["kept_bytes"], each["dense_bytes"]
    assert counted == told
    # On a card a kernel's blocks of wide rows are smaller, and sums are made in another order.
    close = dict(rtol=1e-5, atol=1e-5) if DEVICE.type == "cuda" and ops is triton else dict(rtol=0.0, atol=0.0)
    for want, have in zip(wide, narrow, strict=True):
        torch.testing.assert_close(have, want, **close)


def test_an_index_says_the_same_of_keys_in_other_units() -> None:
    """A checkpoint's scales: keys are divided by them, queries multiplied."""
    g = torch.Generator().manual_seed(4)
    k, q = torch.randn(12, 3, 16, generator=g), torch.randn(1, 6, 16, generator=g)
    found = []
    for unit in (1.0, 0.25):
        cache = make_cache(lazy_settings(2, 1))
        assert cache.index is not None
        cache.index.measure([unit, unit])
        mine = cache.index.layers[1]
        reference.index(k / unit, torch.arange(12), mine.heads, mine.rows, mine.encode, mine.offset, mine.fields)
        weights = (q * unit).view(3, 2, 16)[mine.heads.long()] @ mine.decode
        found.append((mine.rows[:, :12].clone(), weights))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("dtype", EIGHT.values(), ids=EIGHT)
def test_what_8_bits_cannot_reach_becomes_the_most_they_can(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    values = torch.tensor([0.0, 1.0, -most, most, 3 * most, -1e30, float("inf")])
    assert narrowed(values, dtype).float().tolist() == [0.0, 1.0, -most, most, most, -most, most]
    assert narrowed(values, torch.bfloat16).isinf().any(), "wide stores round alone"
