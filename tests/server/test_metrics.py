"""Every metric of the table is on /metrics, as what it is, and says nothing of who asked what."""

from __future__ import annotations

import itertools
import re
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_conservation import settled
from waiting import wait_for

from benchmarks.launch import Server
from benchmarks.recall import Language
from hetero_sglang.sglang.metrics import COUNTER, HISTOGRAM, METRICS, PREFIX

pytestmark = pytest.mark.server("usual")

Series = dict[tuple[str, str], float]  # by name and the value of its own label


def exported(server: Server) -> tuple[dict[str, str], Series, set[str]]:
    """Kinds by name, numbers, and every value of a label; of ours alone."""
    kinds, numbers, values = {}, {}, set()
    own = {metric.name: metric.label for metric in METRICS}
    for family in text_string_to_metric_families(server.get("/metrics")):
        if not family.name.startswith(PREFIX):
            continue
        name = family.name.removeprefix(PREFIX) + ("_total" if family.type == COUNTER else "")
        kinds[name] = family.type
        for sample in family.samples:
            values |= set(sample.labels.values())
            which = sample.labels.get(own[name] or "", "")
            numbers[sample.name.removeprefix(PREFIX), which] = sample.value
    return kinds, numbers, values


def test_every_metric_is_there_and_counters_move_with_a_request(server: Server, language: Language) -> None:
    worker_rows, attempts = settled(server)["worker_rows"], itertools.count()
    _, before, _ = exported(server)
    secret = "rid-that-nobody-should-read"
    document = language.document(4, 3000, 30)
    question = language.ask(document, 0, 4)

    def asked() -> dict[str, Any] | None:
        """The statistics once the worker was in time, which takes some attempts on a busy machine."""
        server.generate(document.ids + question.ids, 100, {"rid": f"{secret}-{next(attempts)}"}, ignore_eos=True)
        stats = settled(server)
        return stats if stats["worker_rows"] > worker_rows else None

    counted = wait_for(asked, "no row has come by the worker")
    kinds, after, values = exported(server)
    assert kinds == {metric.name: metric.kind for metric in METRICS}
    for name in ("requests", "compressed_requests", "kept_bytes", "dense_bytes"):
        assert after[f"{name}_total", ""] > before[f"{name}_total", ""]
        assert after[f"{name}_total", ""] == counted[name]
    ways = [after["fetched_rows_total", way] - before["fetched_rows_total", way] for way in ("kernel", "worker")]
    assert (
        min(ways) >= 0
        and sum(ways) > 0
        and counted["fetched_rows"] == sum(after["fetched_rows_total", way] for way in ("kernel", "worker"))
    )
    assert after["fetched_rows_total", "worker"] == counted["worker_rows"] > 0
    for name, wanted in (("looks", "checks"), ("triggers", "triggers")):
        now, was = (
            [numbers[f"drift_{name}_total", f"{quarter}/4"] for quarter in (1, 2, 3, 4)] for numbers in (after, before)
        )
        assert sum(now) == counted[f"drift_{wanted}"] and sum(now) > sum(was)
    assert after["drift_held_ratio_count", ""] == counted["drift_checks"]
    assert 0 < after["drift_held_ratio_sum", ""] < counted["drift_checks"]
    assert after["ranking_seconds_count", ""] > before["ranking_seconds_count", ""]
    assert after["rankings_total", ""] > before["rankings_total", ""] and after["worker_up", ""] == 1
    for metric in METRICS:
        if metric.kind in (COUNTER, HISTOGRAM):
            same = [key for key in before if key[0].removesuffix("_sum").removesuffix("_count") == metric.name]
            assert all(after[key] >= before[key] for key in same), metric.name
    told = [*language.decode(document.ids).split(), language.decode(question.ids), secret, str(document.ids[5])]
    assert not [value for value in values for word in told if len(word) > 5 and word in value]


def test_levels_are_of_now_and_add_up_although_nothing_runs(server: Server, language: Language) -> None:
    server.generate(language.document(6, 3000, 30).ids, 8)
    counted = settled(server)
    _, now, _ = exported(server)
    assert now["active", ""] == now["integrity_ok", ""] == 1 and now["live_requests", ""] == 0
    states = {which: value for (name, which), value in now.items() if name == "hot_pages"}
    assert set(states) == {"used", "free", "parked", "prefix"} and sum(states.values()) == counted["hot_pages"]
    assert states["used"] == 0 and counted["hot_pages_cached"] == states["parked"] + states["prefix"]
    tiers = ("resident", "hot", "index", "host")
    assert [now["tier_capacity_bytes", tier] for tier in tiers] == [counted[f"{tier}_bytes"] for tier in tiers]
    taken = counted["token_slots"] - counted["token_slots_free"]
    assert now["tier_used_tokens", "host"] == now["tier_used_tokens", "resident"] == taken > 0
    assert now["tier_capacity_tokens", "host"] == counted["token_slots"] and now["tier_used_tokens", "index"] == 0
    assert 0 < now["tier_used_bytes", "host"] < now["tier_capacity_bytes", "host"]
    began, was = time.monotonic(), now["integrity_age_seconds", ""]

    def grown() -> float:
        return exported(server)[1]["integrity_age_seconds", ""] - was

    wait_for(lambda: grown() > 1, "it does not grow while nothing runs")
    assert grown() < time.monotonic() - began + 5  # the first was exported a little earlier


def test_help_texts_are_sentences_of_the_table(server: Server) -> None:
    told = dict(re.findall(rf"^# HELP {PREFIX}(\w+) (.*)$", server.get("/metrics"), re.MULTILINE))
    assert told == {metric.name: metric.help for metric in METRICS}
