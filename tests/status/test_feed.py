"""Those who watch share one question a second, and nobody is asked when nobody looks."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from status_world import Scheduler, serving
from waiting import PATIENCE_S, wait_for

from hetero_sglang.sglang.page.feed import RATES, rates_between


def number_of(event: dict[str, Any]) -> int:
    """Of the question to the scheduler that it answers."""
    return int(event["ranks"][0]["clock"])


class Watcher:
    """A client of the stream."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)
        self.connection.request("GET", "/hetero/events")
        self.reply = self.connection.getresponse()

    def next(self) -> dict[str, Any]:
        while line := self.reply.readline():
            if line.startswith(b"data: "):
                return json.loads(line.removeprefix(b"data: "))
        raise EOFError

    def numbered(self, number: int) -> dict[str, Any]:
        """The event of the scheduler's question of this number, or the first after it."""
        while number_of(event := self.next()) < number:
            pass
        return event

    def leave(self) -> None:
        self.reply.close()
        self.connection.close()


def test_many_watchers_cost_what_one_does_and_none_costs_nothing() -> None:
    scheduler = Scheduler()
    with serving(scheduler) as url:
        time.sleep(0.3)
        assert scheduler.asked == 0
        begun = time.monotonic()
        watchers = [Watcher(url) for _ in range(12)]
        first = [each.next() for each in watchers]
        assert all("history" in event for event in first)
        newest = max(number_of(event) for event in first)  # on a slow machine some came a question later
        seen = [[each.numbered(newest + 1), each.next()] for each in watchers]
        assert scheduler.asked <= time.monotonic() - begun + 1.5
        assert len({json.dumps(events) for events in seen}) == 1, "all see the same"
        for each in watchers[1:]:
            each.leave()
        assert watchers[0].next()["rates"]["decoded_tokens"] == 40
        watchers[0].leave()

        def forgotten() -> bool:
            asked = scheduler.asked
            time.sleep(2.2)
            return scheduler.asked == asked

        wait_for(forgotten, "it is asked although nobody looks")
        asked = scheduler.asked
        late = Watcher(url)
        event = late.next()
        late.leave()
        assert event["rates"] == dict.fromkeys(RATES), "nothing is known of the time without watchers"
        assert len(event["history"]) == asked + 1 and event["history"][-1][1:] == [None, None, None, 0]


def test_a_server_that_winds_down_ends_its_streams() -> None:
    scheduler = Scheduler()
    with serving(scheduler) as url:
        watcher = Watcher(url)
        watcher.next()
        scheduler.gracefully_exit = True
        with contextlib.suppress(EOFError):
            for _ in range(3):  # what was on its way
                watcher.next()
            pytest.fail("it goes on")
        watcher.leave()


def test_a_scheduler_that_does_not_answer_once_does_not_end_the_stream() -> None:
    scheduler = Scheduler()
    answer = scheduler.get_internal_state

    async def sometimes() -> Any:
        if scheduler.asked == 1:
            scheduler.asked += 1
            raise RuntimeError("busy")
        return await answer()

    scheduler.get_internal_state = sometimes  # type: ignore[method-assign]
    with serving(scheduler) as url:
        watcher = Watcher(url)
        assert watcher.next()["ranks"] and watcher.next()["ranks"]
        watcher.leave()


def test_who_leaves_before_the_answer_comes_does_not_take_the_question_back() -> None:
    scheduler, answer, ends = Scheduler(), Scheduler().get_internal_state, []

    async def slow() -> Any:
        try:
            await asyncio.sleep(1.5)
        finally:
            ends.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]
        return await answer()

    scheduler.get_internal_state = slow  # type: ignore[method-assign]
    with serving(scheduler) as url:
        Watcher(url).leave()
        wait_for(lambda: ends, "it was not asked, or not heard")
        time.sleep(1)
        assert ends == [0], "it was asked once"
        watcher = Watcher(url)
        assert watcher.next()["ranks"]
        watcher.leave()


def test_rates_are_of_all_ranks_by_each_ones_clock() -> None:
    def rank(clock: float, count: int) -> dict[str, float]:
        return {"clock": clock, **dict.fromkeys(RATES, count)}

    before = [rank(0.0, 0), rank(100.0, 50)]
    assert rates_between(before, [rank(2.0, 20), rank(101.0, 55)]) == dict.fromkeys(RATES, 15.0)
    for unknown in ([rank(2.0, 20)], [rank(60.0, 20), rank(101.0, 55)], [rank(-3.0, 0), rank(101.0, 55)]):
        assert rates_between(before, unknown) == dict.fromkeys(RATES)
