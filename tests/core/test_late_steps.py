"""Tokens that leave a pass early and go through their last layers with a later one: every byte is as if none had."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from core_helpers import DIM, Request, decode, engine_of, make_cache, make_settings, random_profile, table_of
from test_drafts import begun, same
from test_lazy_heads import TURNS, Run, lazy_settings
from test_policies_in_engine import OTHERS, settings_of

from hetero_sglang.config.settings import Settings


def rows_of(requests: list[Request], layer: int, lengths: list[int]) -> list[torch.Tensor]:
    """slots [B], q, k and v of the tokens by which requests have these lengths."""
    pairs = list(zip(requests, lengths, strict=True))
    slots = torch.tensor([int(r.token_slots[n - 1]) for r, n in pairs])
    rows = [slots, *(torch.stack([getattr(r, name)[layer][n - 1] for r, n in pairs]) for name in "qkv")]
    return [each.to(engine_of(requests[0].cache).device) for each in rows]


def leave(requests: list[Request], lengths: list[int], layers: int) -> int:
    """A step whose tokens run the first `layers` alone; its clock."""
    engine = engine_of(requests[0].cache)
    table = table_of(requests).to(engine.device)
    step = engine.eager(len(requests), max(lengths))
    engine.begin_decode(step, [r.slot for r in requests], lengths, len(requests), table)
    tables = step.plan(len(requests))
    for layer in range(layers):
        engine.decode(layer, step, tables, *rows_of(requests, layer, lengths), DIM**-0.5)
    engine.left(step, copied=False)
    return engine.clock


def catch_up(
    requests: list[Request], late: list[tuple[list[int], int]], lengths: list[int] | None, layers: int
) -> torch.Tensor:
    """The late steps run their layers from `layers` on; with them a step by which requests have `lengths`, if any:
    outputs [layer, step, request, Hq, D] of those layers."""
    engine, count = engine_of(requests[0].cache), len(requests)
    table = table_of(requests).to(engine.device)
    turns, every = [], [lengths_of for lengths_of, _ in late]
    if lengths is not None:
        step = engine.eager(count, max(lengths))
        engine.begin_decode(step, [r.slot for r in requests], lengths, count, table)
        tables = step.plan(count)
        for layer in range(layers):
            engine.decode(layer, step, tables, *rows_of(requests, layer, lengths), DIM**-0.5)
        turns, every = [(step, tables)], [*every, lengths]
    turns = [*engine.late.begin([r.slot for r in requests], late, table), *turns]
    out = []
    for layer in range(layers, len(engine.layers)):
        rows = zip(*(rows_of(requests, layer, mine) for mine in every), strict=True)
        told = engine.decode_turns(layer, turns, *map(torch.cat, rows), DIM**-0.5)  # type: ignore[arg-type]
        out.append(told.unflatten(0, (len(turns), count)))
    engine.late.through()
    engine.poll()
    return torch.stack(out).cpu()


def check(
    settings: Settings, waits: list[int], ahead: bool, prompts: list[int], layers: int,
    ops: ModuleType | None = None, device: torch.device | str = "cpu",
) -> None:  # fmt: skip
    """Passes by turns: so many tokens of each request wait, then go on, with a step or ahead of it."""
    one, other = make_cache(settings, device=device), make_cache(settings, device=device)
    for cache in (one, other):
        engine_of(cache, ops)
    stepped, left = begun(one, prompts), begun(other, prompts)
    lengths = list(prompts)
    for count in waits:
        late, wanted = [], []
        for _ in range(count):
            lengths = [n + 1 for n in lengths]
            wanted.append(decode(stepped, lengths))
            late.append((lengths, leave(left, lengths, layers)))
        if ahead:
            got = catch_up(left, late, None, layers)
        else:
            lengths = [n + 1 for n in lengths]
            wanted.append(decode(stepped, lengths))
            got = catch_up(left, late, lengths, layers)
        torch.testing.assert_close(got, torch.stack([each[layers:] for each in wanted], 1), atol=1e-6, rtol=1e-5)
    same(one, other)
    for cache in (one, other):
        cache.check_integrity()


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("run", [1, 4, (8, 1)])
def test_heads_with_an_index(run: Run, ahead: bool) -> None:
    check(lazy_settings(1, run), [3, 1, 2, 3], ahead, [150, 30], 1)


def test_heads_look_when_it_was_their_turn() -> None:
    """By the clock of the step that a token left."""
    check(lazy_settings(1, 1, probed=TURNS), [3, 1, 2, 3, 3, 3, 3], False, [150], 1)


@pytest.mark.parametrize("name", OTHERS)
def test_other_policies(name: str) -> None:
    check(settings_of(name), [3, 1, 20], False, [230, 150], 1)


@pytest.mark.parametrize("ahead", [False, True])
def test_heads_that_follow_pivots(ahead: bool) -> None:
    pivots = {"drift_threshold": 1.0, "monitor_interval": 1, "anchor_interval": 0, "dense_below": 140}
    check(make_settings(random_profile(4), **pivots), [3, 1, 2, 3], ahead, [150, 141], 2)


def test_what_came_has_its_places_before_the_next_token_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the lane that seats it, too, which a device runs beside."""
    cache = make_cache(lazy_settings(1, 1))
    engine, told = engine_of(cache), list[str]()
    requests = begun(cache, [150])
    late = [([n], leave(requests, [n], 1)) for n in (151, 152)]
    assert engine.finder is not None
    finder, settle, attended = engine.finder, engine.finder.settle, engine.finder.attended
    monkeypatch.setattr(finder, "settle", lambda: (told.append("settle"), settle()))
    monkeypatch.setattr(finder, "attended", lambda *what: (told.append("attended"), attended(*what)))
    catch_up(requests, late, [153], 1)
    beside = told[told.index("attended") + 1 :]
    assert beside.count("attended") == 3 * (len(engine.layers) - 1) and "attended,attended" not in ",".join(beside)
    assert finder.seated is None


def test_what_left_a_step_ago_has_arrived_though_nothing_follows_it() -> None:
    """A ring may come round to its rows while one token after the other leaves early."""
    cache = make_cache(lazy_settings(1, 1))
    requests, write_back = begun(cache, [150]), engine_of(cache).write_back
    decode(requests, [151])
    leave(requests, [152], 1)
    sent = write_back.latest
    assert write_back.before is not sent, "which the next step's passes need not wait for"
    leave(requests, [153], 1)
    assert write_back.before is write_back.latest is sent
