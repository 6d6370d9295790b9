"""Heads with a key index: what they hold is what the lazy rule says, and attention is over exactly that."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from core_helpers import (
    DIM,
    GROUP,
    Request,
    decode,
    dense,
    engine_of,
    held_positions,
    make_cache,
    make_settings,
    prefill,
    selected_rows,
    selected_tokens,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sglang.config.settings import Settings
from hetero_sglang.ops.reference.choose import PART, lazy, used_at_first, used_bin
from hetero_sglang.ops.reference.index import unpack
from hetero_sglang.policy.heterocache import IndexedHeads
from hetero_sglang.profile.ablation import alike
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.index_plan import IndexPlan

LAYERS, HEADS = 2, 3
FIELDS = ((8, 4), (8, 2))


SOME = np.array([[True, False, True], [False, False, False]])  # heads that have an index
TURNS = np.array([[1, 2, 4], [4, 0, 2]])  # and steps from one in which they find rows to the next
Run = int | tuple[int, ...]  # of all layers, or of each


def indexed_profile(seed: int, run: Run, probed: np.ndarray | None = None, heads: int = HEADS) -> HeadProfile:
    """An index of 48 bits in random directions, heads of different weight."""
    rng = np.random.default_rng(seed)
    basis = np.stack([np.linalg.qr(rng.normal(size=(DIM, DIM)))[0] for _ in range(LAYERS * heads)])
    basis = basis.reshape(LAYERS, heads, DIM, DIM).astype(np.float32)
    levels = np.concatenate([np.full(count, 2**bits - 1) for count, bits in FIELDS])
    step = np.where(levels == 15, 0.34, 1.0)
    offset = np.broadcast_to(-levels / 2, (LAYERS, heads, DIM)).astype(np.float32)
    tables = (basis / step).astype(np.float32), offset, (basis * step).astype(np.float32)
    weight = rng.permutation([0.8, 0.9, 0.9, 1.0, 1.1, 1.3, 1.0, 1.0][: LAYERS * heads]).reshape(LAYERS, heads)
    return alike(LAYERS, heads, heads * GROUP, DIM, IndexPlan(FIELDS, *tables, run, probed, weight))


def lazy_settings(
    seed: int, run: Run, keep_ratio: float = 0.55, probed: np.ndarray | None = None, dense_below: int = 80
) -> Settings:
    options = {"policy": IndexedHeads(), "window": 6, "sink": 2, "dense_below": dense_below}
    return make_settings(indexed_profile(seed, run, probed), keep_ratio, **options)


def slots_of(count: int, seed: int) -> torch.Tensor:
    return torch.randperm(590, generator=torch.Generator().manual_seed(seed))[:count] + 1


@pytest.mark.parametrize("run", [1, 4, (8, 1), (4, 8)])
@pytest.mark.parametrize(("seed", "probed"), [(0, None), (1, None), (2, SOME), (3, TURNS)])
def test_a_step_attends_over_exactly_what_its_heads_held_and_what_came(
    seed: int, probed: np.ndarray | None, run: Run
) -> None:
    """Two requests, poisoned buffers; rows are their tokens', none twice, sinks and recent tokens among them."""
    cache = make_cache(lazy_settings(seed, run, probed=probed))
    slots = slots_of(500, seed)
    one = Request(cache, 1, 150, 220, slots[:220], seed)
    two = Request(cache, 2, 90, 220, slots[220:440], seed + 9)
    for request in (one, two):
        request.start()
    prefill([one, two], [(0, 150), (0, 90)])
    before = cache.counters.fetched_rows
    for step in range(1, 40):
        held_before = [[selected_tokens(request, number) for number in range(LAYERS * HEADS)] for request in (one, two)]
        out = decode([one, two], [150 + step, 90 + step])
        for row, (request, base) in enumerate(((one, 150), (two, 90))):
            for layer in range(LAYERS):
                for head in range(HEADS):
                    number = layer * HEADS + head
                    held = held_positions(request, number, base + step)
                    assert held.unique().numel() == held.numel()
                    run = cache.settings.runs[layer]
                    window = cache.settings.rule.window_of(run)
                    assert window >= 6
                    recent = torch.arange((base + step - window) // run * run, base + step)  # what no run may bring yet
                    assert torch.isin(recent, held).all() and held[:2].tolist() == [0, 1]
                    q = request.q[layer][base + step - 1].view(HEADS, GROUP, -1)[head]
                    held = torch.cat((held, held_before[row][number])).unique()  # what goes, goes afterwards
                    wanted = dense(q, request.k[layer][held, head], request.v[layer][held, head])
                    got = out[layer, row].view(HEADS, GROUP, -1)[head]
                    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    assert cache.counters.fetched_rows > before, "nothing ever changed"
    cache.check_integrity()


@pytest.mark.parametrize(("run", "probed"), [(1, SOME), ((1, 4), SOME), (1, np.zeros_like(SOME))])
def test_a_head_without_an_index_keeps_what_the_prompt_chose(run: Run, probed: np.ndarray) -> None:
    """And takes no room for one: those bytes are rows of all."""
    settings, all_have = lazy_settings(4, run, 0.47, probed), lazy_settings(4, run, 0.47)
    assert settings.index_bytes == (6 * probed.sum(),)
    assert settings.layout.fractions[0] > all_have.layout.fractions[0]
    cache = make_cache(settings)
    assert [layer.rows.shape[0] for layer in cache.index.layers] == probed.sum(1).tolist()
    request = Request(cache, 1, 150, 220, slots_of(220, 8), 2)
    request.start()
    prefill([request], [(0, 150)])
    rows = [selected_rows(request.ws, number) for number in range(LAYERS * HEADS)]
    before = [cache.hot.position.view(-1)[each].clone() for each in rows]
    for length in range(151, 190):
        decode([request], [length])
    changed = [not torch.equal(cache.hot.position.view(-1)[x], y) for x, y in zip(rows, before, strict=True)]
    assert changed == probed.flatten().tolist()


def test_heads_find_rows_when_it_is_their_turn() -> None:
    """By a clock of steps, whoever is first, and their layer; in between they keep their rows."""
    cache, slots = make_cache(lazy_settings(2, 1, probed=TURNS)), slots_of(420, 4)
    requests = [Request(cache, slot, 150, 200, slots[200 * slot - 200 :][:200], slot) for slot in (1, 2)]
    for request in requests:
        request.start()
    prefill(requests, [(0, 150)] * 2)
    decode(requests[:1], [151])
    numbers, changes = range(LAYERS * HEADS), 0
    for length in range(151, 170):
        before = [[selected_tokens(x, number) for number in numbers] for x in requests]
        order = slice(None, None, -1 if length % 2 else 1)
        decode(requests[order], [length + 1, length][order])
        for request, was in zip(requests, before, strict=True):
            for number, every in enumerate(TURNS.flatten()):
                changed = not torch.equal(selected_tokens(request, number), was[number])
                assert not changed or (every and (length + 1 + number // HEADS) % every == 0)
                changes += changed
    turns = sum((length + 1 + number // HEADS) % every == 0 for number, every in enumerate(TURNS.flatten()) if every
                for length in range(151, 170))  # fmt: skip
    assert changes > 0.8 * turns * len(requests)


def naive(request: Request, layer: int, head: int, length: int, run: int) -> torch.Tensor:
    """Scores [runs] of a head's tokens by its index rows: attention, mean over the group, best of a run."""
    index = request.cache.index
    rows = index.layers[layer].rows[head].cpu()[request.token_slots[: length - 1]]
    codes = unpack(rows, FIELDS).double()
    q = request.q[layer][length - 1].view(HEADS, GROUP, -1)[head].double()
    logits = (q @ index.layers[layer].decode[head].cpu().double()) @ codes.T * DIM**-0.5
    scores = logits.softmax(-1).mean(0)
    return scores[: (length - 1) // run * run].view(-1, run).amax(1)


@pytest.mark.parametrize("runs", [1, 4, (1, 8)])
def test_what_is_wanted_most_is_held_in_the_same_step(runs: Run) -> None:
    """The best quarter of a head's places, by its own index and this step's query, is there when it attends; of those
    that are nearly alike, as many."""
    cache = make_cache(lazy_settings(7, runs))
    rule = cache.settings.rule
    request = Request(cache, 1, 160, 220, slots_of(220, 3), 5)
    request.start()
    prefill([request], [(0, 160)])
    for length in range(161, 200):
        decode([request], [length])
        for layer, run in enumerate(cache.settings.runs):
            for head in range(HEADS):
                number = layer * HEADS + head
                held = held_positions(request, number, length)
                scores = naive(request, layer, head, length, run)
                sink, high = rule.sink // run, (length - rule.window_of(run)) // run
                places = (request.ws.caps[number] - rule.sink - rule.ring_rows) // run
                want = max(1, places // PART)
                last = float(scores[sink:high].topk(want).values[-1])
                runs = torch.arange(sink, high)
                here = torch.isin(runs * run, held)  # a bin ends at 8/7 to 5/4 of its begin
                assert here[scores[sink:high] > 1.25 * last].all()
                assert int((here & (scores[sink:high] > last / 1.25)).sum()) >= want
    engine_of(cache).stats()
    assert int(engine_of(cache).tables.told[1, 0].sum()) == cache.counters.fetched_rows > 0
    assert cache.counters.late_rows == 0


def test_a_long_unwanted_row_goes_first() -> None:
    """What stays is what was wanted more recently than anything that went, but for runs that never were."""
    cache = make_cache(lazy_settings(1, 1))
    request = Request(cache, 1, 150, 220, slots_of(220, 8), 2)
    request.start()
    prefill([request], [(0, 150)])
    rows = selected_rows(request.ws, 0)
    position, used = (t.view(-1)[rows].clone() for t in (cache.hot.position, cache.hot.used))
    for length in range(151, 190):
        decode([request], [length])
        now, use = cache.hot.position.view(-1)[rows], cache.hot.used.view(-1)[rows]
        gone, stayed = position != now, (position == now) & (use == used)
        if gone.any() and stayed.any():
            assert used_bin(used[gone], length).max() <= used_bin(used[stayed], length).min()
        position, used = now.clone(), use.clone()


def test_a_look_at_one_token_alone_brings_it() -> None:
    """Scores too small for a bin of their own are wanted by nobody, however few there are above them."""
    scores = torch.full((1, 100), 1e-12).index_fill_(1, torch.tensor([70]), 1.0)
    held = torch.arange(40, dtype=torch.int32)[None]
    swaps = lazy(scores, held, used_at_first(torch.zeros(1, 40)), 100, 0, 100, want=10, most=512)
    assert swaps.run.tolist() == [70] and swaps.late == 0


def test_budget_counts_the_index() -> None:
    """Rows and index together are the keep ratio of the compressed heads' bytes."""
    settings = lazy_settings(0, 1, 0.55)
    row, index = 4 * DIM, settings.index_bytes[0] / settings.layout.num_compressed
    assert settings.layout.num_resident == 0
    fractions = settings.layout.fractions
    assert len(set(fractions)) > 3  # heads of different weight
    assert sum(fractions) / len(fractions) * row + index == pytest.approx(0.55 * row)


@given(st.integers(0, 50), st.sampled_from([1, 4, 8]), st.floats(0.35, 0.95), st.integers(2, 200), st.integers(1, 80))
@settings(max_examples=60, deadline=None)
def test_the_default_length_from_which_requests_are_compressed_has_room_for_the_poorest_head(
    seed: int, run: int, keep_ratio: float, window: int, sink: int
) -> None:
    options = {"policy": IndexedHeads(), "window": window, "sink": sink, "dense_below": None}
    made = make_settings(indexed_profile(seed, run), keep_ratio, **options)  # is refused where it has not
    assert made.rule.dense_below >= 512
