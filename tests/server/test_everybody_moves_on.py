"""Law, where demand is a multiple of the memory: each request ends within a bounded number of others' ends.

One client of the longest documents that the server takes cannot starve small chats, nor they it.
"""

from __future__ import annotations

import asyncio

import pytest
from servers import TABLE
from test_conservation import check_empty_handed, settled

from benchmarks.fairness import Pressure, press, summary
from benchmarks.launch import Server

SMALL = Pressure(chats=16, rounds=7, chat_tokens=40, chat_reserve=1330, long_tokens=1400)


def check(server: Server, load: Pressure) -> None:
    server.flush()
    before = settled(server)["waiting_for_hot_pages"]
    assert load.demand() > 3.5 * TABLE["tight"]["max_total_tokens"]
    done = asyncio.run(press(server.url, load))
    clients = load.chats + 1
    bound = 3 * clients  # in order: once everybody before it, and while it runs twice those beside it
    assert len(done) > 2 * bound, "too few requests to starve one"
    worst = max(done, key=lambda each: each.passed)
    assert worst.passed <= bound, f"{worst} waited for more than {bound} others: {summary(done)}"
    assert sum(each.long for each in done) >= 2
    after = settled(server)
    assert after["waiting_for_hot_pages"] > before, "hot pages were never short"
    check_empty_handed(after)


@pytest.mark.server("tight")
def test_every_client_moves_on_where_demand_is_four_times_the_memory(server: Server) -> None:
    check(server, SMALL)


@pytest.mark.slow
@pytest.mark.server("tight")
def test_fifty_chats_beside_the_longest_document_move_on(server: Server) -> None:
    check(server, Pressure(rounds=10))
