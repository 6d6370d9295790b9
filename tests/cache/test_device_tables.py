"""The device's page lists stay what working sets say, whatever was packed before."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import make_cache, make_settings, random_profile

from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.tally import Tally


def test_lists_survive_a_repack() -> None:
    made = make_settings(random_profile(3, layers=2, heads=4))
    cache = make_cache(made, pages=120)
    tables = DeviceTables(8, made.layout.num_compressed, cache.hot.pages, "cpu")
    kept = cache.start(7, cache.admission.grant(40, 4))
    tables.put([kept])
    for _ in range(40):
        tables.put([cache.start(2, cache.admission.grant(30, 4))])
        for slot, ws in ((2, cache.requests[2]), (7, kept)):
            for number in range(ws.heads):
                pages = ws.table[number]
                begin = int(tables.page_start[slot, number])
                assert torch.equal(tables.page_list[begin : begin + pages.numel()].long(), pages)
                assert int(tables.cap[slot, number]) == ws.caps[number]
        cache.finish(2)


def test_what_came_is_counted_anew_for_every_request() -> None:
    """Also where it goes on with the set of one that has ended, in the same slot; not where a set has only grown."""
    made = make_settings(random_profile(3, layers=2, heads=4))
    cache = make_cache(made, pages=200)
    tables = DeviceTables(8, made.layout.num_compressed, cache.hot.pages, "cpu")
    ws = cache.start(3, cache.admission.grant(30, 4))
    tables.put([ws])
    tables.came[3] += 5
    tables.put([cache.start(4, cache.admission.grant(30, 4)), ws])
    assert (tables.told[3] == 5).all() and (tables.told[4] == 0).all()
    assert tables.counted(ws).sum() > 0
    ws.tally = Tally(ws.tally.number + 7, resumed=True)
    assert (tables.counted(ws) == 0).all(), "what is there is another's"
    tables.put([ws])
    assert (tables.told[3] == 0).all()


@given(st.lists(st.tuples(st.sampled_from(["begin", "move", "grow", "end"]), st.integers(0, 7)), max_size=40))
@settings(max_examples=40)
def test_sets_that_go_to_other_slots_keep_their_lists(deeds: list[tuple[str, int]]) -> None:
    """A set that goes on in another slot, or is back in its first, has its rows there, and is copied only when it has
    got more pages."""
    made = make_settings(random_profile(3, layers=2, heads=4))
    cache = make_cache(made, pages=200)
    tables = DeviceTables(8, made.layout.num_compressed, cache.hot.pages, "cpu")
    for deed, slot in deeds:
        live = sorted(cache.requests)
        if deed == "begin" and slot not in live:
            grant = cache.admission.grant(30, 4)
            if not cache.admission.fits(cache.admission.demand(grant)):
                continue
            tables.put([cache.start(slot, grant)])
        elif deed == "move" and live and slot not in live:
            ws = cache.requests.pop(live[0])
            cache.requests[slot], ws.slot, end = ws, slot, tables._end
            tables.put([ws])
            assert tables._end == end, "the list was copied"
            cache.admission.accounts[slot] = cache.admission.accounts.pop(live[0])
        elif deed == "grow" and live and cache.admission.growth(live[0]) is not None and cache.admission.grow(live[0]):
            cache.requests[live[0]].grow()
            tables.put([cache.requests[live[0]]])
        elif deed == "end" and live:
            cache.finish(live[-1])
        for slot, ws in cache.requests.items():
            for number in range(ws.heads):
                pages = ws.table[number]
                begin = int(tables.page_start[slot, number])
                assert torch.equal(tables.page_list[begin : begin + pages.numel()].long(), pages)
                assert int(tables.cap[slot, number]) == ws.caps[number]
