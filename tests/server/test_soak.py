"""Laws under everything at once: mixed requests whose users leave, while workers die and generation is paused.

None is lost or hangs, nobody is told what is another's, and nothing is left over.
"""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.launch import Server
from benchmarks.recall import Language
from benchmarks.soak import verdict
from benchmarks.soak.command import OURS, RETRACT, ROOM
from benchmarks.soak.crowd import Crowd
from benchmarks.soak.run import Load, soak
from benchmarks.soak.tally import End

QUICK = Load(requests=200, seed=3, deed=1.2, sample=5.0, hurry=4.0)


def check(server: Server, language: Language, load: Load, clients: int) -> None:
    soaked = asyncio.run(soak(server, Crowd(language, clients, load.seed), load, tell=lambda tally: None))
    assert soaked.broken == []
    log = server.log.read_text(errors="replace")
    assert verdict.of_the_end(server.alive, log, []) == []
    tally = soaked.tally
    assert tally.sent == load.requests
    assert all(tally.ends[end] for end in (End.ANSWERED, End.ABORTED, End.DISCONNECTED)), tally.ends
    assert tally.asked > 40 and tally.right > 0.7 * tally.asked, f"{tally.right} of {tally.asked} entries are right"
    if "SGLANG_TEST_RETRACT" in server.env:
        assert "Testing retraction" in log


@pytest.mark.slow
@pytest.mark.server("small")
def test_a_soak_of_paged_slots_and_a_key_index_breaks_no_law(server: Server, language: Language) -> None:
    check(server, language, QUICK, clients=12)


@pytest.mark.slow
@pytest.mark.server("roles")
def test_a_soak_by_pivots_survives_its_worker_s_deaths(server: Server, language: Language) -> None:
    before = server.stats()["worker_restarts"]
    check(server, language, QUICK, clients=12)
    assert server.stats()["worker_restarts"] > before


@pytest.mark.slow
@pytest.mark.parametrize("index", ["none", "directions"])
@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.server()
def test_a_longer_soak_breaks_no_law(language: Language, page: int, index: str) -> None:
    load = Load(requests=1500, seed=page, limit=240)
    flags = {**ROOM, **OURS, "kv_policy": "heterocache", "hetero_index": index, "page_size": page}
    with Server(env=RETRACT, **flags) as server:
        soaked = asyncio.run(soak(server, Crowd(language, 32, page), load, tell=lambda tally: None))
        assert soaked.broken == []
        assert verdict.of_the_end(server.alive, server.log.read_text(errors="replace"), []) == []
    assert not soaked.watch.left_over()
