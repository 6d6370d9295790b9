"""What may change while a server runs changes what the next step does; what is no such change changes nothing."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from core_helpers import Request, decode, engine_of, make_cache, make_settings, prefill, random_profile, worker_up
from test_engine import scattered_slots
from test_lazy_heads import lazy_settings, slots_of
from test_policies_in_engine import LAYERS, STEP, chosen_by, held, settings_of

from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.config.tuning import LONGEST, NAMES, Tuning
from hetero_sglang.errors import HeteroError

FIXED = {"monitor_interval": "it was recorded"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "the body is null"),
        ([1], "the body is a list"),
        ("retrieval", "the body is a string"),
        ({}, "names no field"),
        ({"keep_ratio": 0.5}, "there is no field 'keep_ratio'"),
        ({"x" * 1000: 1}, "there is no field 'xxx"),
        ({"retrieval": 1}, "retrieval is a whole number"),
        ({"retrieval": None}, "retrieval is null"),
        ({"drift_threshold": True}, "drift_threshold is true or false"),
        ({"drift_threshold": "0.5"}, "drift_threshold is a string"),
        ({"drift_threshold": float("nan")}, "drift_threshold nan is not in (0, 1]"),
        ({"drift_threshold": float("inf")}, "drift_threshold inf is not in (0, 1]"),
        ({"drift_threshold": 0}, "set retrieval to false"),
        ({"drift_threshold": 1 << 2000}, "of 2001 bits is not in (0, 1]"),
        ({"monitor_interval": 2}, "monitor_interval cannot change while this server runs: it was recorded."),
        ({"drift_threshold": 0.5, "monitor_interval": 2}, "cannot change"),
    ],
)
def test_what_is_no_change_is_refused_in_a_sentence(change: Any, words: str) -> None:
    tuning = Tuning(0.9, 4)
    with pytest.raises(HeteroError) as error:
        tuning.changed(change, FIXED)
    assert words in str(error.value) and str(error.value).endswith(".") and len(str(error.value)) < 200
    assert tuning == Tuning(0.9, 4)


@pytest.mark.parametrize("value", [0, -1, LONGEST + 1, 1 << 200, 2.0, True, "4", None])
def test_an_interval_is_a_whole_number_of_steps(value: Any) -> None:
    with pytest.raises(HeteroError, match=f"from 1 to {LONGEST}"):
        Tuning(0.9, 4).changed({"monitor_interval": value}, {})


def test_the_rest_stays_and_kinds_are_kept() -> None:
    changed = Tuning(0.9, 4).changed({"drift_threshold": 1, "retrieval": False}, FIXED)
    assert changed == Tuning(1.0, 4, False) and type(changed.drift_threshold) is float
    mine = Tuning(0.9, 4)
    mine.take(changed)
    assert mine == changed and list(asdict(mine)) == list(NAMES)


def begun(cache: TieredCache, prompt: int = 150) -> Request:
    request = Request(cache, 1, prompt, prompt + 60, scattered_slots(600, 1)[: prompt + 60], 1)
    request.start()
    prefill([request], [(0, prompt)])
    return request


def grown(cache: TieredCache, request: Request, steps: range) -> tuple[int, int, int]:
    """Looks, triggers and rows of these steps."""
    names = ("drift_checks", "drift_triggers", "fetched_rows")
    before = [getattr(cache.counters, name) for name in names]
    for length in steps:
        decode([request], [length])
    looks, triggers, rows = (getattr(cache.counters, name) - old for name, old in zip(names, before, strict=True))
    return looks, triggers, rows


def test_pivots_go_by_what_holds_now() -> None:
    cache = make_cache(make_settings(random_profile(4), drift_threshold=1.0, monitor_interval=1, anchor_interval=0))
    request, tuning = begun(cache), cache.settings.tuning
    looks, triggers, rows = grown(cache, request, range(151, 159))
    assert looks and triggers == looks and rows
    tuning.take(replace(tuning, monitor_interval=4))
    assert grown(cache, request, range(159, 167))[:2] == (looks // 4, looks // 4)
    tuning.take(replace(tuning, monitor_interval=1, drift_threshold=1e-6))
    assert grown(cache, request, range(167, 175)) == (looks, 0, 0)
    tuning.take(replace(tuning, drift_threshold=1.0, retrieval=False))
    assert grown(cache, request, range(175, 183)) == (looks, 0, 0)
    tuning.take(replace(tuning, retrieval=True))
    assert grown(cache, request, range(183, 191))[1:] > (0, 0)


def test_the_worker_is_asked_nothing_while_retrieval_is_off_and_its_rows_are_told_apart() -> None:
    cache = make_cache(make_settings(random_profile(4), drift_threshold=1e-6, monitor_interval=1, anchor_interval=2))
    engine = engine_of(cache)
    assert worker_up(engine)
    request, tuning = begun(cache), cache.settings.tuning
    tuning.take(replace(tuning, retrieval=False))
    grown(cache, request, range(151, 159))
    assert cache.counters.anchor_refreshes == 0
    tuning.take(replace(tuning, retrieval=True))
    for length in range(159, 190):
        decode([request], [length])
        while engine.finder.anchors.asking or engine.finder.anchors.ranking.under_way:
            engine.poll()
    counters, tally = cache.counters, request.ws.tally
    engine.close()
    cache.close()
    assert counters.worker_rows == counters.fetched_rows > 0, "no pivot triggers at this threshold"
    assert counters.ranking.count > 0 and 0 < counters.ranking.seconds < 60
    assert 0 < tally.refills <= counters.anchor_refreshes


def test_heads_with_an_index_bring_nothing_while_retrieval_is_off_and_find_all_tokens_afterwards() -> None:
    cache = make_cache(lazy_settings(5, 1))
    request = Request(cache, 1, 150, 210, slots_of(210, 5), 5)
    request.start()
    prefill([request], [(0, 150)])
    tuning = cache.settings.tuning
    assert grown(cache, request, range(151, 159))[2] > 0
    tuning.take(replace(tuning, retrieval=False))
    assert grown(cache, request, range(159, 190))[2] == 0
    tuning.take(replace(tuning, retrieval=True))
    assert grown(cache, request, range(190, 200))[2] > 0


@pytest.mark.parametrize("name", STEP)
def test_policies_that_choose_anew_do_not_while_retrieval_is_off_and_have_indexed_all_tokens_then(name: str) -> None:
    cache, prompt = make_cache(settings_of(name)), 331
    rule, policy, layers = cache.settings.rule, cache.settings.policy, cache.settings.layout.layers
    request = Request(cache, 1, prompt, prompt + 80, scattered_slots(prompt + 80, 3), prompt)
    request.start()
    prefill([request], [(0, prompt)])
    cache.settings.tuning.retrieval = False
    assert grown(cache, request, range(prompt + 1, prompt + 75))[2] == 0
    cache.settings.tuning.retrieval = True
    length = prompt + 75
    assert grown(cache, request, range(length, length + 1))[2] > 0
    for layer in range(LAYERS):
        for head, wanted in enumerate(chosen_by(policy, request, layer, prompt, length)):
            cap = request.ws.caps[layers[layer].first + head]
            fixed = set(range(rule.sink)) | set(range(length - rule.turning(cap), length))
            assert held(request, layer, head, length) == wanted | fixed


def test_what_graphs_have_recorded_may_not_change() -> None:
    pivots = engine_of(make_cache(make_settings(random_profile(4), drift_threshold=0.9, anchor_interval=0)))
    indexed, stepwise = engine_of(make_cache(lazy_settings(5, 1))), engine_of(make_cache(settings_of("quest")))
    none = engine_of(make_cache(make_settings(random_profile(4), drift_threshold=0.0)))
    assert not none.settings.tuning.retrieval and indexed.settings.tuning.retrieval
    looks = {"drift_threshold", "monitor_interval"}
    assert pivots.fixed() == {} and set(indexed.fixed()) == looks
    assert set(stepwise.fixed()) == {"drift_threshold"} and set(none.fixed()) == set(NAMES)
    for engine in (pivots, indexed, stepwise):
        engine.graph_step = engine.eager(1, 100)
    assert set(pivots.fixed()) == looks == set(indexed.fixed()) and set(stepwise.fixed()) == set(NAMES)


def test_every_hot_page_is_in_one_state() -> None:
    cache = make_cache(lazy_settings(5, 1), pages=200)
    request = Request(cache, 1, 150, 210, slots_of(210, 5), 5)
    assert cache.page_states() == {"used": 0, "free": 200, "parked": 0, "prefix": 0}
    request.start()
    held = request.ws.count
    assert cache.page_states() == {"used": held, "free": 200 - held, "parked": 0, "prefix": 0}
    request.ws.length = 150
    cache.park(1, request.token_slots.numpy()[:150], None)
    cache.keep_prefix(request.token_slots[:32].numpy(), set())
    groups = 2 * cache.settings.layout.num_compressed
    assert cache.page_states() == {"used": 0, "free": 200 - held - groups, "parked": held, "prefix": groups}
    tiers = cache.tiers(40, 599)
    assert tiers["hot"].used == 0 and tiers["hot"].total == 200 * 16 // cache.settings.layout.num_compressed
    assert (tiers["host"].used, tiers["host"].total) == (tiers["index"].used, tiers["index"].total) == (40, 599)
    assert tiers["resident"].total == 0, "no head is resident here"
