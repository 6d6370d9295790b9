"""Rows of cached prefixes on the device are the host's, of the tokens that have the slots now, and in nobody's way."""

from __future__ import annotations

import numpy as np
import torch
from core_helpers import DIM, Request, decode, engine_of, make_cache, prefill
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lazy_heads import HEADS, LAYERS, lazy_settings

from hetero_sglang.cache.tiers import TieredCache


def check_bytes(cache: TieredCache, written: torch.Tensor) -> None:
    """Whatever has a place is, byte for byte, what the host store has; `written` [n]: slots that hold a token."""
    cache.find_prefix(np.empty(0, dtype=np.int64))  # freed slots are forgotten
    known = (cache.prefixes.place >= 0).nonzero()[0]
    assert np.isin(known, written.numpy()).all(), "a slot that was freed has a place"
    places = torch.from_numpy(cache.prefixes.place[known]).long()
    assert places.unique().numel() == places.numel()
    for layer, spec in enumerate(cache.settings.layout.layers):
        rows = cache.prefixes.rows(places, slice(spec.first, spec.first + len(spec.compressed)))
        blocks = cache.host.blocks[layer]
        slots = torch.from_numpy(known).long()
        host = blocks[slots // blocks.shape[2], :, slots % blocks.shape[2]]  # [n, C, D + Dv]
        mine = torch.cat([store.view(-1, DIM)[rows] for store in (cache.hot.k, cache.hot.v)], -1)
        assert torch.equal(mine, host)
    held = [group for group in cache.prefixes._used]
    assert cache.admission.groups == len(held) == cache.prefixes.groups


def test_a_prefix_that_the_device_has_does_not_come_back_and_the_answer_is_the_same() -> None:
    """To the bit; and a chunk finds the rows of the chunks before it."""
    cache = make_cache(lazy_settings(3, 4), pages=4000)
    one = Request(cache, 1, 150, 200, torch.randperm(590)[:200] + 1, 3)
    one.start()
    first = [prefill([one], [(0, 100)]), prefill([one], [(100, 150)])]
    assert cache.counters.prefix_rows_held == 100 * LAYERS and cache.counters.prefix_rows_read == 0
    cache.finish(1)
    two = Request(cache, 2, 150, 200, one.token_slots, 3)
    two.start()
    again = prefill([two], [(110, 150)])
    assert cache.counters.prefix_rows_held == 210 * LAYERS and cache.counters.prefix_rows_read == 0
    cache.admission.keep(-cache.prefixes.give_up(1000))
    three = Request(cache, 3, 150, 200, one.token_slots, 3)
    three.start()
    from_host = prefill([three], [(110, 150)])
    assert cache.counters.prefix_rows_read == 110 * LAYERS
    for layer in range(LAYERS):
        assert torch.equal(again[layer][0], from_host[layer][0])
        torch.testing.assert_close(again[layer][0], first[1][layer][0][10:], atol=1e-6, rtol=1e-5)
    mixed = Request(
        cache, 4, 170, 200, one.token_slots, 3
    )  # 110 and what the pass before has taken in, then the host's
    mixed.start()
    cache.admission.keep(-cache.prefixes.forget(one.token_slots[30:60].numpy()))
    prefill([mixed], [(150, 170)])
    assert cache.counters.prefix_rows_read == 140 * LAYERS
    cache.check_integrity()


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_slots_that_are_freed_and_taken_again_are_never_mistaken(data: st.DataObject) -> None:
    """Requests come, share prefixes, end; what the tree drops is another's slot next. With few pages groups come and
    go."""
    cache = make_cache(lazy_settings(1, 1), pages=data.draw(st.sampled_from([140, 260, 2000])))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    free = list(range(1, 590))
    tree: list[Request] = []  # ended ones, whose slots the radix tree keeps
    live: list[Request] = []
    for seed in range(data.draw(st.integers(3, 12))):
        what = data.draw(st.sampled_from(["begin", "begin", "go on", "end", "drop", "decode"]))
        if what in ("begin", "go on") and len(free) > 220 and len(live) < 2:
            before = tree[data.draw(st.integers(0, len(tree) - 1))] if what == "go on" and tree else None
            shared = min(before.prompt, 100) if before else 0
            prompt = int(rng.integers(max(90, shared + 10), 180))
            if not cache.admission.fits(cache.admission.demand(cache.admission.grant(prompt, 30))):
                continue
            own = [free.pop(int(rng.integers(len(free)))) for _ in range(prompt + 30 - shared)]
            slots = torch.cat([before.token_slots[:shared], torch.tensor(own)]) if before else torch.tensor(own)
            slot = next(n for n in range(1, 8) if n not in cache.requests)
            request = Request(cache, slot, prompt, prompt + 30, slots, before.seed if before else 100 + seed)
            if before:
                for mine, theirs in zip((request.q, request.k, request.v), (before.q, before.k, before.v), strict=True):
                    for layer in range(LAYERS):
                        mine[layer][:shared] = theirs[layer][:shared]
            request.start()
            cut = int(rng.integers(shared + 1, prompt))
            prefill([request], [(shared, cut)])
            prefill([request], [(cut, prompt)])
            live.append(request)
        elif what == "end" and live:
            request = live.pop(0)
            cache.finish(request.slot)
            tree.append(request)
        elif what == "drop" and tree and not live:
            gone = tree.pop(data.draw(st.integers(0, len(tree) - 1)))
            others = {int(s) for each in (*tree, *live) for s in each.token_slots}
            slots = [int(s) for s in gone.token_slots if int(s) not in others]
            cache.release_slots(torch.tensor(slots, dtype=torch.int64))
            free += slots
        elif what == "decode" and live:
            decode(live[:1], [live[0].prompt + 1])
        engine = engine_of(cache)
        engine.write_back.send()
        taken = torch.tensor(sorted(set(range(1, 590)) - set(free)))
        check_bytes(cache, taken)
        cache.check_integrity()
    assert (
        cache.hot.available + cache.prefixes.owned.numel() + sum(request.ws.pages.numel() for request in live)
        == cache.hot.pages
    )
    assert cache.prefixes.heads == HEADS * LAYERS
    cache.reset()
    cache.check_integrity()
    assert cache.hot.available == cache.hot.pages
