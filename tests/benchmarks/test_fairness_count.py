"""What fairness is measured by: a server that serves its queue in order passes, one that starves somebody does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from benchmarks.fairness import Done, Pressure, press, summary

LOAD = Pressure(chats=6, rounds=12, chat_tokens=5, long_tokens=40, patience=20)
Next = Callable[[list[int]], int]  # which of those that wait, by their lengths in tokens


def serve(choose: Next) -> list[Done]:
    """One request at a time, chosen from those that wait."""
    waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        body: dict[str, Any] = await request.json()
        turn = asyncio.get_running_loop().create_future()
        waiting.append((len(body["input_ids"]), turn))
        await turn
        meta = {"finish_reason": {"type": "length"}, "completion_tokens": 2}
        return web.json_response({"text": "", "output_ids": [7, 7], "meta_info": meta})

    async def work() -> None:
        while True:
            await asyncio.sleep(0.005)  # meanwhile all who were answered ask again
            if waiting:
                waiting.pop(choose([length for length, _ in waiting]))[1].set_result(None)

    async def run() -> list[Done]:
        app = web.Application()
        app.router.add_post("/generate", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        working = asyncio.create_task(work())
        try:
            return await press(f"http://{host}:{port}", LOAD)
        finally:
            working.cancel()
            await runner.cleanup()

    return asyncio.run(run())


def test_a_queue_in_order_passes_and_one_that_lets_the_short_ones_in_first_does_not() -> None:
    bound = 3 * (LOAD.chats + 1)
    fair = serve(lambda lengths: 0)
    assert len(fair) >= LOAD.chats * LOAD.rounds + 1
    assert max(done.passed for done in fair) <= bound
    starved = serve(lambda lengths: lengths.index(min(lengths)))
    worst = max(starved, key=lambda done: done.passed)
    assert worst.long and worst.passed > bound, "the long one came last"


def test_a_request_that_is_not_answered_ends_the_measurement() -> None:
    with pytest.raises((RuntimeError, OSError)):
        asyncio.run(press("http://127.0.0.1:9", LOAD))


def test_the_longest_wait_is_told() -> None:
    told = summary([Done(False, 1, 0.1), Done(False, 9, 0.4), Done(True, 3, 2.0), Done(False, 2, 0.2)])
    assert (told["chats"]["passed_most"], told["chats"]["passed_p50"], told["long"]["requests"]) == (9, 2, 1)
    assert told["long"]["seconds_most"] == 2.0
