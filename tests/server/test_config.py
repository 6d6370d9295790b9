"""What may change while a server runs: by whom, on which ranks, and what is refused."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from test_conservation import settled
from waiting import wait_for

from benchmarks.launch import Server
from benchmarks.recall import Language

ROUTE = "/hetero/config"


def refusal(server: Server, body: bytes) -> str:
    """The sentence of a 400."""
    request = urllib.request.Request(server.url + ROUTE, body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=60)
    assert error.value.code == 400
    return json.loads(error.value.read())["error"]["message"]


def grown(server: Server, ids: list[int], *names: str, new: int = 24) -> list[int]:
    """By how much counters have grown with a request of `new` tokens."""
    server.flush()
    before = settled(server)
    server.generate(ids, new, ignore_eos=True)
    after = settled(server)
    return [after[name] - before[name] for name in names]


@pytest.mark.server("usual")
def test_pivots_look_and_fetch_as_the_configuration_says(server: Server, language: Language) -> None:
    start = server.get(ROUTE)
    assert start == {"drift_threshold": 0.9, "monitor_interval": 4, "retrieval": True, "fixed": {}}
    ids = language.document(4, 2500, 30).ids
    names = ("drift_checks", "drift_triggers", "fetched_rows")
    try:
        looks, triggers, _ = grown(server, ids, *names)
        assert looks > 0
        assert server.post(ROUTE, {"monitor_interval": 1}) == {**start, "monitor_interval": 1} == server.get(ROUTE)
        more, _, _ = grown(server, ids, *names)
        assert more > 2 * looks
        assert server.post(ROUTE, {"drift_threshold": 1})["drift_threshold"] == 1.0
        every, drifted, rows = grown(server, ids, *names)
        assert every == more and drifted > triggers and rows > 0
        server.post(ROUTE, {"retrieval": False})
        assert grown(server, ids, *names) == [more, 0, 0]
    finally:
        changed = {name: value for name, value in start.items() if name != "fixed"}
        assert server.post(ROUTE, changed) == start


@pytest.mark.server("usual")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is empty"),
        (b"   ", "the body is empty"),
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "the body is a list"),
        (b"null", "the body is null"),
        (b"{}", "names no field"),
        (b'{"keep_ratio": 0.5}', "no field 'keep_ratio'"),
        (b'{"fixed": {}}', "no field 'fixed'"),
        (b'{"drift_threshold": NaN}', "nan is not in (0, 1]"),
        (b'{"drift_threshold": 1e999}', "inf is not in (0, 1]"),
        (b'{"drift_threshold": "0.5"}', "a string"),
        (b'{"monitor_interval": 4.5}', "a number"),
        (b'{"monitor_interval": 1' + b"0" * 4000 + b"}", "bits"),
        (b'{"retrieval": 0}', "a whole number"),
        (b'{"retrieval": false, "monitor_interval": 0}', "monitor_interval 0"),
    ],
)
def test_what_is_no_change_is_refused_in_one_sentence_and_changes_nothing(
    server: Server, body: bytes, words: str
) -> None:
    before = server.get(ROUTE)
    said = refusal(server, body)
    assert words in said and said.endswith(".") and len(said) < 250
    assert server.get(ROUTE) == before


@pytest.mark.server("indexed")
def test_heads_with_an_index_read_nothing_but_retrieval(server: Server, language: Language) -> None:
    ids = language.document(4, 1200, 12).ids
    assert set(server.get(ROUTE)["fixed"]) == {"drift_threshold", "monitor_interval"}
    assert "watch no pivots" in refusal(server, b'{"retrieval": false, "drift_threshold": 0.5}')
    assert grown(server, ids, "fetched_rows", new=8)[0] > 0
    try:
        assert server.post(ROUTE, {"retrieval": False})["retrieval"] is False
        assert grown(server, ids, "fetched_rows", new=8) == [0]
    finally:
        assert server.post(ROUTE, {"retrieval": True})["retrieval"] is True
    assert grown(server, ids, "fetched_rows", new=8)[0] > 0


@pytest.mark.server("two-ranks")
def test_every_rank_makes_a_change_and_none_makes_a_wrong_one(server: Server, language: Language) -> None:
    ids = language.document(4, 700, 8).ids

    before = server.log.read_text(errors="replace")

    def told(words: str, times: int) -> None:
        """So often since the test began: each rank for itself, the second perhaps after the first has answered."""

        def count() -> int:
            return server.log.read_text(errors="replace").count(words) - before.count(words)

        wait_for(lambda: count() >= times, lambda: f"{words!r} was told {count()} times, not {times}")
        assert count() == times

    def directly(message: dict[str, Any]) -> list[bool]:  # past the check in the main process
        return server.post("/set_internal_state", {"server_args": message})

    assert grown(server, ids, "fetched_rows", new=8)[0] > 0
    try:
        server.post(ROUTE, {"retrieval": False})
        assert grown(server, ids, "fetched_rows", new=8) == [0]
        told("retrieval is False from the next step on", 2)
        assert directly({"hetero_retrieval": 7}) == [False]
        told("configuration was refused", 2)
        assert directly({"hetero_retrieval": 1, "hetero_drift_threshold": 0.5}) == [False]
        told("configuration was refused", 4)
        assert server.get(ROUTE)["retrieval"] is False
    finally:
        server.post(ROUTE, {"retrieval": True})
    told("retrieval is True from the next step on", 2)
    assert grown(server, ids, "fetched_rows", new=8)[0] > 0
