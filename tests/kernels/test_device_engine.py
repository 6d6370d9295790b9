"""The engine with the kernels against itself with torch's operations, through whole lives of requests."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "policy"))

from core_helpers import (
    DIM,
    GROUP,
    Request,
    decode,
    engine_of,
    held_positions,
    make_cache,
    make_settings,
    prefill,
    random_profile,
    selected_tokens,
    worker_up,
)
from test_lazy_heads import SOME, Run, lazy_settings
from test_registry import examples
from test_resumed_turns import (
    HEADS,
    LAYERS,
    TOKENS,
    begun,
    check_restored,
    check_rows,
    check_shared,
    check_turn,
    restored,
    turn,
)

from hetero_sglang.config import development
from hetero_sglang.config.settings import Settings
from hetero_sglang.ops import triton
from hetero_sglang.ops.triton.work import DecodeBuffers
from hetero_sglang.policy.base import Policy
from hetero_sglang.policy.heterocache import HeteroCache
from hetero_sglang.policy.registry import POLICIES
from hetero_sglang.profile.ablation import alike

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOSE = {"atol": 3e-5, "rtol": 3e-5}
SLOW = pytest.mark.slow
OTHERS = [name for name, policy in POLICIES.items() if policy is not HeteroCache]


def pairs_of(settings: Settings, prompts: list[int], more: int, slots: torch.Tensor) -> list[list[Request]]:
    """Each request twice: with torch's operations, and with the kernels on their device."""
    theirs, ours = make_cache(settings), make_cache(settings, device=DEVICE)
    engine_of(ours, triton)
    pairs, start = [], 0
    for slot, prompt in enumerate(prompts, start=1):
        mine = slots[start : start + prompt + more]
        pairs.append([Request(cache, slot, prompt, prompt + more, mine, seed=slot) for cache in (theirs, ours)])
        start += prompt + more
        for request in pairs[-1]:
            request.start()
    return pairs


def extend(pairs: list[list[Request]], spans: list[tuple[int, int] | None]) -> None:
    """One prefill pass of both."""
    live = [i for i, span in enumerate(spans) if span]
    given = [spans[i] for i in live]
    wanted, got = (prefill([pairs[i][which] for i in live], given) for which in (0, 1))
    for wanted_layer, got_layer in zip(wanted, got, strict=True):
        for want, have in zip(wanted_layer, got_layer, strict=True):
            torch.testing.assert_close(have, want, **CLOSE)


def step(pairs: list[list[Request]], lengths: list[int], width: int) -> None:
    """One decode step of both, of which the kernels' is padded to `width`."""
    wanted = decode([pair[0] for pair in pairs], lengths)
    torch.testing.assert_close(decode([pair[1] for pair in pairs], lengths, width), wanted, **CLOSE)


def same_rows(pairs: list[list[Request]], lengths: list[int]) -> None:
    for (one, other), length in zip(pairs, lengths, strict=True):
        for number in range(one.cache.settings.layout.num_compressed):
            assert torch.equal(*(held_positions(r, number, length).sort().values for r in (one, other)))


def same_ends(pairs: list[list[Request]]) -> None:
    """Nothing is lost, and the host stores are alike."""
    theirs, ours = (request.cache for request in pairs[0])
    for cache in (theirs, ours):
        write_back = engine_of(cache).write_back
        write_back.send()
        write_back.latest.wait()
        engine_of(cache).poll()
        cache.check_integrity()
    for want, have in zip(theirs.host.blocks, ours.host.blocks, strict=True):
        assert torch.equal(want[1:].nan_to_num(-7), have[1:].nan_to_num(-7))
    told = [vars(cache.counters) for cache in (theirs, ours)]
    rows = [each.pop("prefix_rows_copied") + each.pop("prefix_rows_read") for each in told]  # a GPU copies whole blocks
    assert rows[0] == rows[1] and told[0] == told[1]


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=SLOW) for seed in range(2, 6))])
def test_outputs_equal_through_a_request_s_life(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without looking for rows; slots in runs and items in one wave for even seeds, not so for odd ones."""
    monkeypatch.setattr(DecodeBuffers, "one_wave", seed % 2 == 0)
    rng = random.Random(seed)
    settings = make_settings(random_profile(seed, layers=3, heads=4))
    slots = torch.arange(1, 600) if seed % 2 == 0 else torch.randperm(599) + 1
    prompts = [rng.randint(1, 20), rng.randint(70, 200), rng.randint(64, 150)]
    pairs = pairs_of(settings, prompts, 10, slots)
    cuts = [sorted({0, *(rng.randint(0, p) for _ in range(rng.randint(0, 3))), p}) for p in prompts]
    for part in range(max(map(len, cuts)) - 1):
        extend(pairs, [(c[part], c[part + 1]) if part + 1 < len(c) else None for c in cuts])
    for extra in range(1, 9):
        step(pairs, [p + extra for p in prompts], 4)
    same_ends(pairs)
    assert torch.equal(*(request.cache.hot.position.cpu() for request in pairs[0]))


@pytest.mark.parametrize("beside", [False, True])
def test_a_request_without_a_prompt(beside: bool) -> None:
    prompts = [0, 70] if beside else [0]
    pairs = pairs_of(make_settings(random_profile(3, layers=2, heads=2)), prompts, 4, torch.randperm(300) + 1)
    extend(pairs, [(0, prompt) for prompt in prompts])
    for extra in range(1, 4):
        step(pairs, [prompt + extra for prompt in prompts], len(prompts))
    same_ends(pairs)


@pytest.mark.parametrize(
    ("seed", "retrieval", "reassign"),
    [
        (4, "replace", True),
        pytest.param(0, "accumulate", False, marks=SLOW),
        pytest.param(0, "replace", False, marks=SLOW),
        pytest.param(4, "accumulate", True, marks=SLOW),
    ],
)
def test_pivots_refill_their_satellites(
    seed: int, retrieval: str, reassign: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks at every other step, so that requests are not always due together."""
    profile = random_profile(seed, layers=2, heads=6)
    monkeypatch.setattr(development, "waits", lambda: True)  # for what the worker ranks for anchors
    options = {"monitor_interval": 2, "anchor_interval": 2 * reassign, "retrieval": retrieval, "reassign": reassign}
    settings = make_settings(profile, drift_threshold=0.55, **options)
    prompts = [150, 91, 20]
    pairs = pairs_of(settings, prompts, 12, torch.randperm(590) + 1)
    engines = [engine_of(request.cache) for request in pairs[0]]
    assert all(not reassign or worker_up(engine) for engine in engines)
    extend(pairs, [(0, 100), (0, 91), (0, 20)])
    extend(pairs, [(100, 150), None, None])
    for extra in range(1, 9):
        lengths = [prompt + extra for prompt in prompts]
        step(pairs, lengths, 4)
        same_rows(pairs, lengths)
    same_ends(pairs)
    counters = pairs[0][1].cache.counters
    assert counters.fetched_rows > 0 and 0 < counters.drift_triggers < counters.drift_checks + seed
    assert (counters.anchor_refreshes > 0) == reassign
    told = [engine.tables.told for engine in engines]
    assert torch.equal(*told) and int(told[1].sum()) == counters.fetched_rows + counters.late_rows
    assert counters.looks == pairs[0][0].cache.counters.looks and sum(counters.held.parts) == counters.drift_checks
    for engine in engines:
        engine.close()


@pytest.mark.parametrize(
    ("run", "probed", "steps"), [(1, None, 7), (4, None, 3), (1, SOME, 7), ((8, 1), None, 2), ((4, 8), SOME, 2)]
)
def test_heads_with_an_index_find_their_rows(run: Run, probed: np.ndarray | None, steps: int) -> None:
    """Kernels round a query's weights to 8 bits, so rows wanted little may differ: outputs follow what is held."""
    prompts = [150, 90, 20]
    pairs = pairs_of(lazy_settings(3, run, probed=probed), prompts, 30, torch.randperm(590) + 1)
    extend(pairs, [(0, 100), (0, 90), (0, 20)])
    extend(pairs, [(100, 150), None, None])
    for extra in range(1, steps + 1):
        lengths, mine = [prompt + extra for prompt in prompts], [pair[1] for pair in pairs]
        every = range(mine[0].cache.settings.layout.num_compressed)
        gone = [[selected_tokens(request, number) for number in every] for request in mine]
        check_held(mine, lengths, decode(mine, lengths, 4), gone)
    engine, counters = engine_of(pairs[0][1].cache), pairs[0][1].cache.counters
    engine.poll()
    assert int(engine.tables.told[:, 0].sum()) == counters.fetched_rows > 0 and counters.late_rows == 0


@pytest.mark.parametrize("indexed", [False, True])
def test_nothing_comes_while_retrieval_is_off(indexed: bool) -> None:
    """Kernels read it on the device, so that graphs follow it too."""
    plain = {"drift_threshold": 1.0, "monitor_interval": 1, "anchor_interval": 0}
    settings = lazy_settings(3, 1) if indexed else make_settings(random_profile(4, layers=1, heads=6), **plain)
    cache = make_cache(settings, device=DEVICE)
    engine = engine_of(cache, triton)
    request = Request(cache, 1, 90, 110, torch.randperm(590)[:110] + 1, seed=1)
    request.start()
    prefill([request], [(0, 90)])
    came = []
    for steps, retrieval in ((range(91, 95), True), (range(95, 98), False), (range(98, 102), True)):
        before, settings.tuning.retrieval = cache.counters.fetched_rows, retrieval
        for length in steps:
            decode([request], [length])
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
            engine.poll()
            engine.poll()  # the first asks anew
        came.append(cache.counters.fetched_rows - before > 0)
    assert came == [True, False, True]


@pytest.mark.parametrize(
    ("run", "probed", "cut", "count"),
    [
        pytest.param(1, None, 1, 9, marks=SLOW),
        (4, SOME, 3, 12),
        pytest.param((8, 1), None, 0, 1, marks=SLOW),
    ],
)
def test_a_next_turn_attends_over_what_its_set_holds(
    run: Run, probed: np.ndarray | None, cut: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_turn(begun(3, run, probed, ops=triton, device=DEVICE), cut, count, monkeypatch)


@pytest.mark.parametrize("count", [3, pytest.param(40, marks=SLOW)])
def test_recorded_appends_leave_what_launched_ones_leave(count: int) -> None:
    """In CUDA graphs where there are some; else the same work is done over the buffers of graphs. Fewer new tokens than
    a window look once, more look twice."""
    made = []
    for recorded in (False, True):
        before = begun(3, (4, 1), SOME, ops=triton, device=DEVICE)
        cache, engine = before.cache, engine_of(before.cache)
        engine.graph_step = engine.make_step(4, engine.context, fixed=True)
        if recorded:
            engine.record()
            assert engine.append is not None and len(engine.append.recorded) == LAYERS
        request = turn(cache, before, 2, 154, 154 + count)
        assert request is not None
        outs = prefill([request], [(154, 154 + count)])
        decode([request], [155 + count])
        cache.park(2, TOKENS[: 155 + count], None)
        again = turn(cache, request, 3, 155 + count, 158 + count, parked=next(iter(cache.parking.sets.values())))
        assert again is not None
        outs += prefill([again], [(155 + count, 158 + count)])
        check_rows(again, 158 + count)
        held = [held_positions(again, number, 158 + count).sort().values for number in range(LAYERS * HEADS)]
        held.append(cache.hot.used[again.ws.pages.to(DEVICE)].flatten().sort().values.cpu())
        made.append((outs, held))
    (outs, held), (others, same) = made
    assert len(outs) == len(others) == 2 * LAYERS
    for (mine,), (theirs,) in zip(outs, others, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)  # in other parts
    for one, other in zip(held, same, strict=True):
        assert torch.equal(one, other)


@SLOW
def test_a_set_is_made_of_a_prefix_s_index(monkeypatch: pytest.MonkeyPatch) -> None:
    check_restored(*restored(11, (4, 1), 20, ops=triton, device=DEVICE, probed=SOME), 20, monkeypatch)


@SLOW
def test_several_share_a_set() -> None:
    check_shared(False, 1, ops=triton, device=DEVICE)


def check_held(requests: list[Request], lengths: list[int], out: torch.Tensor, gone: list[list[torch.Tensor]]) -> None:
    from test_engine import expect

    for row, (request, length) in enumerate(zip(requests, lengths, strict=True)):
        for layer in range(out.shape[0]):
            wanted = expect(request, layer, length - 1, False, gone[row])
            torch.testing.assert_close(out[layer, row], wanted, atol=1e-4, rtol=1e-3)


def lives_alike(policy: Policy) -> None:
    """Requests of it by both kinds of operations: what they hold, and what they attend to."""
    profile = alike(2, 2, 2 * GROUP, DIM)
    settings = make_settings(profile, 0.5, policy=policy, window=34, monitor_interval=1, dense_below=128)
    prompts = [250, 30]  # units of 16 and 32 tokens end soon
    pairs = pairs_of(settings, prompts, 10, torch.randperm(590) + 1)
    extend(pairs, [(0, 180), (0, 30)])
    extend(pairs, [(180, 250), None])
    for extra in range(1, 8):
        lengths = [prompt + extra for prompt in prompts]
        step(pairs, lengths, 4)
        same_rows(pairs, lengths)
    same_ends(pairs)


@pytest.mark.parametrize("name", [pytest.param(x, marks=SLOW if x in ("fier", "kvcluster") else ()) for x in OTHERS])
def test_policies(name: str) -> None:
    lives_alike(POLICIES[name]())


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=SLOW)])
def test_a_policy_of_the_page_that_shows_how_to_write_one(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file, and nothing else knows of it."""
    lives_alike(examples(monkeypatch)[number])
