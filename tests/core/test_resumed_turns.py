"""A next turn goes on with the set that the one before has left: what it attends to, and whose its pages are."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from core_helpers import DIM, GROUP, Request, decode, dense, engine_of, held_positions, make_cache, prefill
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lazy_heads import FIELDS, HEADS, LAYERS, SOME, Run, lazy_settings, slots_of

from hetero_sglang.cache.hot_pool import PINNED
from hetero_sglang.cache.parking import Parked, Parking
from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.engine.going import BLOCK
from hetero_sglang.ops.base import Arrivals, Behind, LayerBuffers, StepTables
from hetero_sglang.ops.reference.index import unpack
from hetero_sglang.ops.reference.workspace import Workspace as Handed

TOKENS = np.arange(1000)


def turn(
    cache: TieredCache, before: Request, slot: int, prefix: int, length: int, most: int = 20,
    parked: Parked | None = None,
) -> Request | None:  # fmt: skip
    """Park `before` with its first `prefix` tokens, and go on in another slot; None where that may not be."""
    if parked is None:
        cache.park(before.slot, TOKENS[:prefix], None)
        parked = cache.parking.find(TOKENS[:length], None)
    assert parked is not None
    account = cache.resumable(parked, cache.admission.grant(length, most), prefix, length)
    if account is None:
        return None
    cache.claim(parked)
    cache.resume(slot, parked, account, alone=True)
    cache.check_integrity()
    return copied(before, slot=slot, prompt=length)


def copied(request: Request, **changes: object) -> Request:
    """The same tokens, elsewhere."""
    made = copy(request)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def begun(
    seed: int, run: Run, probed: np.ndarray | None, prompt: int = 150, steps: int = 5, ops: ModuleType | None = None,
    device: torch.device | str = "cpu", pages: int = 2000,
) -> Request:  # fmt: skip
    """A request that has decoded some tokens; `ops`: by other operations than its device's."""
    cache = make_cache(lazy_settings(seed, run, probed=probed), device=device, pages=pages)
    engine_of(cache, ops)
    request = Request(cache, 1, prompt, 300, slots_of(300, seed), seed)
    request.start()
    prefill([request], [(0, prompt)])
    for length in range(prompt + 1, prompt + steps + 1):
        decode([request], [length])
    return request


@pytest.mark.parametrize("run", [1, 4, (8, 1)])
@pytest.mark.parametrize("probed", [None, SOME])
@pytest.mark.parametrize(("cut", "count"), [(0, 1), (0, 4), (1, 9), (3, 12)])
def test_new_tokens_attend_over_exactly_what_the_set_holds_and_those_before_them(
    run: Run, probed: np.ndarray | None, cut: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_turn(begun(3, run, probed), cut, count, monkeypatch)


def recorded(request: Request, length: int, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], torch.Tensor]:
    """By head and new token, filled during a prefill: what it holds of `length` tokens when that attends, or has beside
    what it holds."""
    held: dict[tuple[int, int], torch.Tensor] = {}
    ops = engine_of(request.cache).ops
    append = ops.append

    def watched(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: LayerBuffers, step: StepTables, behind: Behind,
        scale: float, out: torch.Tensor, arrivals: Arrivals | None = None,
    ) -> None:  # fmt: skip
        count, first, *_ = behind.numbers.tolist()
        for number in range(layer.first, layer.first + HEADS):
            there = held_positions(request, number, length)
            for at in range(first, first + count):
                block, blocks = (at - first) // BLOCK, step.length.numel()
                held[number, at] = torch.cat((there, beside(request, arrivals, layer, number, block, blocks)))
        append(q, k, v, layer, step, behind, scale, out, arrivals)

    monkeypatch.setattr(ops, "append", watched)
    return held


def beside(
    request: Request, arrivals: Arrivals | None, layer: LayerBuffers, number: int, block: int, blocks: int
) -> torch.Tensor:  # fmt: skip
    """Tokens that came for a block's heads, told by their keys."""
    head = int(layer.heads[number - layer.first])
    if arrivals is None or head not in arrivals.layer.heads.tolist():
        return torch.empty(0, dtype=torch.int64)
    work, index = arrivals.work, arrivals.layer
    if isinstance(work, Handed):
        came = [x.k[x.head == number - layer.first] for x in work.arrived if x.request == block]
        keys = torch.cat(came) if came else torch.empty(0, DIM)
    else:
        heads = index.heads.numel()
        unit = block * heads + index.heads.tolist().index(head)
        begin = unit * work.limit(blocks * heads, index.run) * index.run
        keys = work.arrived_k[begin : begin + int(work.comes[unit]) * index.run].cpu()
    every = request.k[layer.first // HEADS][:, head]
    return (keys[:, None] == every[None]).all(2).int().argmax(1)


def check_turn(before: Request, cut: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cut`: tokens of the set that the turn does not share. Buffers are poisoned; what no row has cannot be read."""
    cache, prefix = before.cache, 155 - cut
    length = prefix + count
    request = turn(cache, before, 2, prefix, length)
    assert request is not None and cache.counters.resumed_requests == 1
    held = recorded(request, 155, monkeypatch)
    out = prefill([request], [(prefix, length)])
    for layer in range(LAYERS):
        window = cache.settings.rule.window_of(cache.settings.runs[layer])
        for head in range(HEADS):
            number = layer * HEADS + head
            recent = torch.arange(155 - window, prefix)  # of which the set's last steps may have overwritten some
            for at in range(count):
                there = held[number, at][held[number, at] < prefix]
                assert there.unique().numel() == there.numel() and there[:2].tolist() == [0, 1]
                assert torch.isin(recent, there).all()
                seen = torch.cat((there, torch.arange(prefix, prefix + at + 1)))
                q = request.q[layer][prefix + at].view(HEADS, GROUP, -1)[head]
                wanted = dense(q, request.k[layer][seen, head], request.v[layer][seen, head])
                got = out[layer][0][at].view(HEADS, GROUP, -1)[head]
                torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    check_rows(request, length)
    for step in range(length + 1, length + 9):  # and it decodes as any other
        decode([request], [step])
        check_rows(request, step)
    cache.finish(2)
    cache.check_integrity()


def check_rows(request: Request, length: int) -> None:
    """Each token once, sinks and recent tokens among them, and every row its token's."""
    cache = request.cache
    for number in range(LAYERS * HEADS):
        layer, head = divmod(number, HEADS)
        held = held_positions(request, number, length)
        window = cache.settings.rule.window_of(cache.settings.runs[layer])
        assert held.unique().numel() == held.numel() and held.max() < length
        assert torch.isin(torch.cat((torch.arange(2), torch.arange(length - window, length))), held).all()
        rows = torch.arange(min(request.ws.caps[number], length))
        flat = request.ws.table[number][rows // 16] * 16 + rows % 16
        token = cache.hot.position.view(-1)[flat].long().cpu()
        assert torch.equal(cache.hot.k.view(-1, DIM)[flat].cpu(), request.k[layer][token, head])
        assert torch.equal(cache.hot.v.view(-1, DIM)[flat].cpu(), request.v[layer][token, head])


@pytest.mark.parametrize("run", [1, 4])
def test_what_any_new_token_wants_most_is_held_when_it_attends(run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = begun(7, run, None)
    cache, prefix, count = before.cache, 155, 6
    rule = cache.settings.rule
    request = turn(cache, before, 2, prefix, prefix + count)
    assert request is not None
    held = recorded(request, prefix, monkeypatch)
    prefill([request], [(prefix, prefix + count)])
    for (number, at), there in held.items():
        if at:
            continue
        layer, head = divmod(number, HEADS)
        index = cache.index.layers[layer]
        codes = unpack(index.rows[head][request.token_slots[: prefix - 1]], FIELDS).double()
        q = request.q[layer][prefix : prefix + count].view(count, HEADS, GROUP, -1)[:, head].double()
        logits = (q @ index.decode[head].double()) @ codes.T * DIM**-0.5  # [n, G, L - 1]
        scores = logits.softmax(-1).mean(1).amax(0)
        scores = scores[: (prefix - 1) // run * run].view(-1, run).amax(1)
        sink, high = rule.sink // run, (prefix - rule.window_of(run)) // run
        places = (request.ws.caps[number] - rule.sink - rule.ring_rows) // run
        last = float(scores[sink:high].topk(min(places, high - sink)).values[-1])
        here = torch.isin(torch.arange(sink, high) * run, there)  # a bin ends at 8/7 to 5/4 of its begin
        assert here[scores[sink:high] > 1.25 * last].all()
    assert cache.counters.fetched_rows or cache.counters.resumed_requests


def test_a_turn_whose_tokens_are_all_held_gets_the_bits_of_a_whole_prefill() -> None:
    before = begun(2, 1, None, prompt=30, steps=4)
    cache = before.cache
    request = turn(cache, before, 2, 34, 50)
    assert request is not None and cache.counters.resumed_requests == 1
    out = prefill([request], [(34, 50)])
    free = torch.arange(600)[~torch.isin(torch.arange(600), request.token_slots)]
    other = copied(request, slot=3, token_slots=free[:300])
    other.start()
    prefill([other], [(0, 34)])
    again = prefill([other], [(34, 50)])
    for layer in range(LAYERS):
        assert torch.equal(out[layer][0], again[layer][0])
    assert cache.counters.prefix_rows_read == 0, "all of both prefixes was on the device"
    check_rows(request, 50)


def share(cache: TieredCache, slots: tuple[int, ...], length: int, most: int = 20) -> None:
    """Requests in these slots go on from what is parked, together."""
    parked = cache.parking.find(TOKENS[:length], None)
    assert parked is not None
    grant, reached = cache.admission.grant(length, most), parked.ws.length
    whole = cache.resumable(parked, grant, reached, length)
    assert whole is not None
    account = cache.admission.sharing(parked.key, whole, reached)
    for _ in slots:
        cache.claim(parked)
    for slot in slots:
        cache.resume(slot, parked, account)
        cache.check_integrity()


def test_who_goes_on_alone_has_the_set_once_it_decodes() -> None:
    """Until then others might have joined; nothing is copied but the rows it was sure to write."""
    before = begun(6, (4, 1), None)
    cache = before.cache
    cache.park(1, TOKENS[:155], None)
    (parked,) = cache.parking.sets.values()
    pages = parked.ws.pages.clone()
    share(cache, (2,), 160)
    request = copied(before, slot=2, prompt=160)
    own = request.ws.owned.numel()
    assert own < pages.numel() / 2 and cache.counters.shared_requests == 0
    prefill([request], [(155, 160)])
    assert cache.parking.sets and (cache.hot.used[request.ws.pages] < PINNED // 2).all()
    decode([request], [161])
    check_rows(request, 161)
    assert not cache.parking.sets and request.ws.base is None
    assert torch.equal(request.ws.owned.sort().values, request.ws.pages.sort().values)
    assert torch.isin(request.ws.pages, pages).sum() == pages.numel() - own
    cache.check_integrity()
    cache.finish(2)
    cache.check_integrity()
    assert cache.hot.available + cache.prefixes.owned.numel() == cache.hot.pages


@pytest.mark.parametrize("room", [False, True])
def test_several_go_on_from_one_set_each_with_its_own_rows(room: bool) -> None:
    check_shared(room, 14)


def check_shared(room: bool, steps: int, ops: ModuleType | None = None, device: torch.device | str = "cpu") -> None:
    """In shared pages until there is `room`; what one does changes nothing for another. Then the set is as it was."""
    before = begun(6, (4, 1), None, ops=ops, device=device, pages=2000 if room else 120)
    cache = before.cache
    cache.park(1, TOKENS[:155], None)
    (parked,) = cache.parking.sets.values()
    alone = parked.ws.pages.numel()
    was = [each.clone() for each in (cache.hot.k, cache.hot.v, cache.hot.position)]
    share(cache, (2, 3, 4), 160)
    shared = cache.levels()["hot_pages_shared"]
    held = cache.hot.pages - cache.hot.available - cache.prefixes.owned.numel()
    assert shared and held == 4 * alone - shared
    turns = [copied(before, slot=slot, prompt=160) for slot in (2, 3, 4)]
    first = prefill([turns[0]], [(155, 160)])
    for length in range(161, 161 + steps):
        decode([turns[0]], [length])
        check_rows(turns[0], length)
    assert (turns[0].ws.base is None) == room
    second, third = prefill([turns[1]], [(155, 160)]), prefill([turns[2]], [(155, 160)])
    for layer in range(LAYERS):
        assert torch.equal(first[layer][0], second[layer][0]) and torch.equal(first[layer][0], third[layer][0])
    pages = parked.ws.table.split(turns[1].ws.shared)[0].pages
    for old, now in zip(was, (cache.hot.k, cache.hot.v, cache.hot.position), strict=True):
        assert torch.equal(old[pages], now[pages]), "a row that is shared was written"
    for each in turns:
        cache.finish(each.slot)
        cache.check_integrity()
    again = turn(cache, before, 5, 155, 160, parked=parked)
    assert again is not None
    prefill([again], [(155, 160)])
    assert not (cache.hot.used[again.ws.pages] > PINNED // 2).any()


def restored(
    seed: int, run: Run, count: int, ops: ModuleType | None = None, device: torch.device | str = "cpu",
    probed: np.ndarray | None = None,
) -> tuple[Request, Request]:  # fmt: skip
    """A prompt whose first 150 tokens another request has left in the host store, and that one."""
    cache = make_cache(replace(lazy_settings(seed, run, 0.33, probed, dense_below=140), restores=True), device=device)
    engine_of(cache, ops)
    before = Request(cache, 1, 150, 200, slots_of(200, seed), seed)
    before.start()
    prefill([before], [(0, 150)])
    cache.finish(1)
    cache._clear(cache.admission.pages)  # nothing of the prefix is on the device
    for store in (cache.hot.k, cache.hot.v):
        store.fill_(float("nan"))
    request = copied(before, slot=2, prompt=150 + count)
    request.start()
    return request, before


@pytest.mark.parametrize("run", [1, 4, (4, 1)])
@pytest.mark.parametrize(("count", "probed"), [(3, None), (20, SOME)])
def test_a_set_made_of_a_prefix_s_index_holds_what_new_tokens_want(
    run: Run, count: int, probed: np.ndarray | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_restored(*restored(11, run, count, probed=probed), count, monkeypatch)


def check_restored(request: Request, before: Request, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the whole prefix comes; new tokens attend to what came and to each other, and decoding goes on."""
    cache, prefix = request.cache, 150
    rule = cache.settings.rule
    held = recorded(request, prefix, monkeypatch)
    out = prefill([request], [(prefix, prefix + count)])
    counters = cache.counters
    assert counters.restored_requests == 1 and counters.prefix_rows_read + counters.prefix_rows_copied == 0
    for number in range(LAYERS * HEADS):
        there = held[number, 0]
        layer, head = divmod(number, HEADS)
        cap, run = request.ws.caps[number], cache.settings.runs[layer]
        assert there.unique().numel() == there.numel() and cap < prefix
        assert torch.isin(torch.cat((torch.arange(2), torch.arange(prefix - rule.window_of(run), prefix))), there).all()
        index = cache.index.layers[layer]
        scores = torch.zeros(HEADS, prefix - 1, dtype=torch.float64)
        for which, (rows, decode_head) in enumerate(zip(index.rows.cpu(), index.decode.cpu().double(), strict=True)):
            codes = unpack(rows[request.token_slots[: prefix - 1]], FIELDS).double()
            q = request.q[layer][prefix : prefix + count].view(count, HEADS, GROUP, -1)[:, index.heads[which]].double()
            asked = q[:BLOCK] if index.which[which] == head else q  # a head that has none goes by all who ask others
            scores[index.which[which]] = ((asked @ decode_head) @ codes.T * DIM**-0.5).softmax(-1).mean(1).amax(0)
        runs = scores[:, : (prefix - 1) // run * run].view(HEADS, -1, run).amax(2)
        mine = runs[head]
        if head not in index.which.tolist():  # it goes by the others, or by what is recent
            mine = (
                runs[index.which.cpu().long()].mean(0) if index.which.numel() else torch.arange(1.0, runs.shape[1] + 1)
            )
        first, last = rule.sink // run, (prefix - rule.window_of(run)) // run
        best = mine[first:last].topk((cap - rule.sink - rule.ring_rows) // run)
        here = torch.isin((best.indices + first) * run, there)
        assert here[best.values > 1.25 * best.values[-1]].all(), "a bin ends at 8/7 to 5/4 of its begin"
        for at in range(count):
            seen = torch.cat((held[number, at], torch.arange(prefix, prefix + at + 1)))
            query = request.q[layer][prefix + at].view(HEADS, GROUP, -1)[head]
            wanted = dense(query, request.k[layer][seen, head], request.v[layer][seen, head])
            torch.testing.assert_close(out[layer][0][at].view(HEADS, GROUP, -1)[head], wanted, atol=1e-5, rtol=1e-4)
    for length in range(prefix + count, prefix + count + 8):
        check_rows(request, length)
        decode([request], [length + 1])
    cache.finish(2)
    cache.check_integrity()


def test_a_whole_prefix_comes_where_little_is_lacking_or_much_is_new() -> None:
    request, _ = restored(5, 1, 9)
    request.cache.settings = replace(request.cache.settings, append=8)
    prefill([request], [(150, 159)])
    assert request.cache.counters.restored_requests == 0 and request.cache.counters.prefix_rows_read > 0
    request, before = restored(5, 1, 9)
    cache, slots = request.cache, request.token_slots[:150]
    assert cache.restorable(request.ws, slots, 9)
    cache.keep_prefix(slots[:100].numpy(), set())
    assert not cache.restorable(request.ws, slots, 9), "most of the prefix is on the device"
    cache.finish(2)
    cache.check_integrity()


def test_what_is_held_whole_is_shared_too_chunk_by_chunk() -> None:
    before = begun(2, 1, None, prompt=40, steps=4)
    cache = before.cache
    cache.park(1, TOKENS[:44], None)
    (parked,) = cache.parking.sets.values()
    share(cache, (2, 3), 70)
    turns = [copied(before, slot=slot, prompt=70) for slot in (2, 3)]
    pages = parked.ws.table.split(turns[0].ws.shared)[0].pages
    was = [store[pages].clone() for store in (cache.hot.k, cache.hot.v, cache.hot.position, cache.hot.used)]
    assert pages.numel() and (was[-1] > PINNED // 2).all()
    for each in turns:
        prefill([each], [(44, 60)])
        prefill([each], [(60, 70)])
        check_rows(each, 70)
    for old, store in zip(was, (cache.hot.k, cache.hot.v, cache.hot.position, cache.hot.used), strict=True):
        assert torch.equal(old, store[pages])
    for length in range(71, 110):
        decode(turns, [length, length])
        for each in turns:
            check_rows(each, length)
    assert cache.counters.prefix_rows_read == 0
    for each in turns:
        cache.finish(each.slot)
    cache.check_integrity()


def test_tokens_that_a_turn_does_not_share_are_not_looked_at() -> None:
    """Their index rows are those of nobody, or of whoever had the new tokens' slots before."""
    made = []
    for garbage in (0, -1, 12345):
        before = begun(3, 1, None)
        request = turn(before.cache, before, 2, 152, 161)
        assert request is not None and before.cache.index is not None
        for layer in before.cache.index.layers:
            layer.rows[:, request.token_slots[152:161]] = garbage
        made.append(prefill([request], [(152, 161)]))
        check_rows(request, 161)
    for other in made[1:]:
        assert all(torch.equal(a[0], b[0]) for a, b in zip(made[0], other, strict=True))


def test_a_chunk_that_ends_before_the_set_does() -> None:
    before = begun(3, (4, 1), None)
    request = turn(before.cache, before, 2, 152, 170)
    assert request is not None
    prefill([request], [(152, 154)])
    prefill([request], [(154, 170)])
    check_rows(request, 170)
    before.cache.finish(2)
    before.cache.check_integrity()


def test_an_append_in_chunks_is_one_that_goes_on_twice() -> None:
    before = begun(5, 1, None)
    cache = before.cache
    request = turn(cache, before, 2, 155, 170)
    assert request is not None
    prefill([request], [(155, 162)])
    check_rows(request, 162)
    prefill([request], [(162, 170)])
    check_rows(request, 170)
    assert cache.counters.appended_tokens == 15


def new_prompts(request: Request) -> list[Request]:
    """Two of the same first 140 tokens, in slots 3 and 4, elsewhere."""
    fresh = [copied(request, slot=slot) for slot in (3, 4)]
    for number, each in enumerate(fresh):
        each.token_slots, each.total, each.prompt = slots_of(580, 4)[300 + 140 * number :][:140], 140, 140
        each.start()
    return fresh


def test_a_prompt_that_goes_on_beside_others_changes_nothing_for_them() -> None:
    """In one pass: a set that goes on, a new prompt and a prefix from the host tier."""
    before = begun(4, 1, None)
    cache = before.cache
    request = turn(cache, before, 2, 155, 161)
    assert request is not None
    fresh = new_prompts(request)
    prefill([fresh[1]], [(0, 100)])
    together = prefill([fresh[0], request, fresh[1]], [(0, 140), (155, 161), (100, 140)])
    alone = [copied(each, slot=each.slot + 2) for each in fresh]
    cache.release_slots(torch.cat([each.token_slots for each in fresh]))  # others get them
    for each in alone:
        each.start()
    first, second = prefill([alone[0]], [(0, 140)]), prefill([alone[1]], [(100, 140)])
    for layer in range(LAYERS):
        assert torch.equal(together[layer][0], first[layer][0]) and torch.equal(together[layer][2], second[layer][0])
    check_rows(request, 161)


@pytest.mark.parametrize("full", [False, True])
def test_a_new_prompt_behind_one_that_goes_on_has_its_own_keys(full: bool) -> None:
    """`full`: the list of all sets' pages, so that it is written anew in this pass."""
    before = begun(4, 1, None)
    cache = before.cache
    request = turn(cache, before, 2, 155, 161)
    assert request is not None
    fresh = new_prompts(request)
    tables = engine_of(cache).tables
    if full:
        tables._known.clear()
        tables._lists.clear()
        tables._end = 40
        tables.page_list = tables.page_list[: 39 + request.ws.count + fresh[0].ws.count]
    together = prefill([request, fresh[0]], [(155, 161), (0, 140)])
    assert not full or tables._end == request.ws.count + fresh[0].ws.count
    alone = prefill([fresh[1]], [(0, 140)])
    for layer in range(LAYERS):
        assert torch.equal(together[layer][1], alone[layer][0])
    check_rows(request, 161)
    check_rows(fresh[0], 140)


def test_a_set_that_has_become_too_small_or_does_not_fit_the_prefix_is_left() -> None:
    before = begun(6, 1, None)
    cache = before.cache
    cache.park(1, TOKENS[:155], None)
    grant = cache.admission.grant
    assert cache.parking.find(TOKENS[:155][::-1].copy(), None) is None
    assert cache.parking.find(TOKENS[:160], "another") is None
    parked = cache.parking.find(TOKENS[:160], None)
    assert parked is not None
    assert cache.resumable(parked, grant(160, 20), 155, 160) is not None
    assert cache.resumable(parked, grant(160, 20), 151, 160) is None, "more than half a window is not shared"
    assert cache.resumable(parked, grant(160, 20), 156, 160) is None, "the prefix has tokens that it has not"
    assert cache.resumable(parked, grant(154, 20), 153, 154) is None, "it has rows of later tokens"
    assert cache.resumable(parked, grant(400, 20), 155, 400) is None, "it keeps far less than such a request may"
    cache.settings = replace(cache.settings, append=4)
    assert cache.resumable(parked, grant(160, 20), 155, 160) is None, "more new tokens than an append may have"


def test_of_two_branches_each_goes_on_with_its_own_set_and_with_no_more_of_another_s_than_both_share() -> None:
    parking = Parking(slack=8)
    branches = [np.concatenate([TOKENS[:95], TOKENS[95:100] + offset]) for offset in (0, 1000)]
    sets = [parking.add(SimpleNamespace(length=100), tokens, None) for tokens in branches]
    nexts = [np.concatenate([tokens, TOKENS[100:120]]) for tokens in branches]
    assert [parking.find(tokens, None) for tokens in nexts] == sets
    assert [[each.shared(tokens) for each in sets] for tokens in nexts] == [[100, 95], [95, 100]]
    parking.take(sets[0])
    assert parking.find(nexts[0], None) is sets[1], "no more than the slack is not shared"


def test_a_set_with_rows_of_more_than_its_tokens_say_is_nobody_s() -> None:
    """Of whoever keeps its prompt alone in the radix tree."""
    parking = Parking(slack=8)
    parking.add(SimpleNamespace(length=100), TOKENS[:90], None)
    assert parking.find(TOKENS[:120], None) is None and parking.find(TOKENS[200:320], None) is None
    assert parking.find(TOKENS[:91], None) is None


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_page_is_free_parked_or_somebody_s(data: st.DataObject) -> None:
    """Whatever comes, ends, goes on and grows: nothing is lost, nothing twice, and nobody waits for parked sets."""
    cache = make_cache(lazy_settings(1, 1), pages=data.draw(st.integers(150, 400)))
    books, free_slots = cache.admission, list(range(1, 8))
    lengths: dict[int, int] = {}
    for _ in range(data.draw(st.integers(5, 40))):
        what = data.draw(st.sampled_from(["start", "park", "finish", "turn", "grow", "flush"]))
        if what in ("start", "turn") and free_slots:
            prompt, most = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
            grant, account = books.grant(prompt, most), None
            parked = cache.parking.find(TOKENS[:prompt], None) if what == "turn" else None
            if parked:
                account = cache.resumable(parked, grant, min(prompt - 1, parked.ws.length), prompt)
            pages, others, shares = account.pages if account else books.demand(grant), 0, False
            if parked and account and (shares := books.users[parked.key] > 0 or data.draw(st.booleans())):
                account = books.sharing(parked.key, account, parked.ws.length)
                pages, others = account.pages, 0 if books.users[parked.key] else books.parked[parked.key].pages
                if not books.lists(account.shared):
                    continue
            if not books.fits(pages, others):
                assert (pages + others > books.free + books.idle).any()
                continue
            slot = free_slots.pop()
            if parked and account:
                cache.claim(parked)
                cache.resume(slot, parked, account, not shares)
            else:
                cache.start(slot, grant)
            lengths[slot] = cache.requests[slot].length = prompt
        elif what == "flush":
            cache.reset()
            free_slots, lengths = list(range(1, 8)), {}
            assert cache.hot.available == cache.hot.pages
        elif lengths and what in ("park", "finish", "grow"):
            slot = data.draw(st.sampled_from(sorted(lengths)))
            if what == "grow":
                ws = cache.requests[slot]
                lengths[slot] = min(ws.grant.limit, lengths[slot] + data.draw(st.integers(1, 200)))
                cache.make_room(ws, lengths[slot])
                ws.length = lengths[slot]
            else:
                cache.park(slot, TOKENS[: lengths[slot]], None) if what == "park" else cache.finish(slot)
                free_slots.append(slot)
                del lengths[slot]
        cache.check_integrity()
        assert engine_of(cache).tables is not None
        parked = sum(x.ws.pages.numel() for x in cache.parking.sets.values() if not books.users[x.key])
        assert cache.levels()["hot_pages_free"] == cache.hot.available + parked
