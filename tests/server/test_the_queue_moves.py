"""Law, on a real server in tight memory: whatever is sent, paused, preempted or aborted, all are answered.

tests/core/test_queue_moves.py has the law pass by pass.
"""

from __future__ import annotations

import random
import time
import urllib.error
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from test_conservation import check_empty_handed, settled
from waiting import wait_for

from benchmarks.launch import Server

pytestmark = pytest.mark.server("tight")

ANSWER_S = 300.0  # for an answer, on a busy machine: the longest have 5000 tokens


def ask(server: Server, prompt: int, new: int, priority: int, seed: int) -> dict[str, Any]:
    """A request of `prompt` random tokens that generates exactly `new`; its outcome."""
    ids = random.Random(seed).choices(range(10, 2900), k=prompt)
    sampling = {"temperature": 0, "max_new_tokens": new, "ignore_eos": True}
    body = {"rid": f"r{seed}", "input_ids": ids, "sampling_params": sampling, "priority": priority}
    try:
        return server.post("/generate", body, timeout=ANSWER_S)
    except urllib.error.HTTPError as error:
        return {"error": error.code}


def length(answer: dict[str, Any]) -> int:
    return len(answer["output_ids"])


def until(server: Server, what: str, least: int) -> None:
    """Until a statistic is as large as that."""
    wait_for(lambda: server.stats()[what] >= least, f"{what} stays below {least}")


def test_a_long_request_comes_back_after_a_pause_and_others_are_served(server: Server) -> None:
    """It was admitted at 50 tokens; at 300 it may ask for no more than that."""
    server.flush()
    decoded = server.stats()["decoded_tokens"]
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(ask, server, 50, 5000, 1, 1)
        until(server, "decoded_tokens", decoded + 250)
        server.post("/pause_generation", {"mode": "retract"})
        try:
            assert server.stats()["live_requests"] == 0
        finally:
            server.post("/continue_generation")
        assert length(pool.submit(ask, server, 3, 3, 1, 2).result()) == 3
        until(server, "live_requests", 1)  # it runs again
        server.post("/abort_request", {"rid": "r1"})
        long.result()
    assert length(ask(server, 3, 3, 1, 3)) == 3
    check_empty_handed(settled(server))


def test_high_priority_preempts_where_hot_pages_are_short_and_nobody_is_lost(server: Server) -> None:
    server.flush()
    before = settled(server)
    with ThreadPoolExecutor(8) as pool:
        low = [pool.submit(ask, server, 112, 370, 1, 10 + i) for i in range(2)]
        until(server, "live_requests", 2)
        high = ask(server, 6200, 4, 100, 20)
        assert length(high) == 4
        assert [length(job.result()) for job in low] == [370, 370]
    after = settled(server)
    assert after["requests"] >= before["requests"] + 4, "nobody was preempted"
    check_empty_handed(after)


@pytest.mark.parametrize(("mixes", "seed"), [(20, 5), pytest.param(50, 6, marks=pytest.mark.slow)])
def test_random_mixes_of_priorities_pauses_and_aborts_are_all_answered(server: Server, mixes: int, seed: int) -> None:
    rng = random.Random(seed)
    for round_ in range(mixes):
        mix = [
            (rng.choice((3, 60, 300, 2000)), rng.choice((1, 5, 30)), rng.choice((1, 1, 100)), 1000 + round_ * 10 + i)
            for i in range(rng.randint(2, 6))
        ]
        with ThreadPoolExecutor(8) as pool:
            jobs: list[Future[dict[str, Any]]] = [pool.submit(ask, server, *request) for request in mix]
            time.sleep(rng.uniform(0, 0.5))
            event = rng.choice(("none", "retract", "in_place", "abort", "one"))
            if event == "one":
                server.post("/abort_request", {"rid": f"r{mix[0][3]}"})
            elif event != "none":
                server.post("/pause_generation", {"mode": event})
                time.sleep(0.1)
                server.post("/continue_generation")
            for job, (_, new, _, _) in zip(jobs, mix, strict=True):
                answer = job.result(ANSWER_S)
                aborted = event in ("abort", "one") and (
                    "error" in answer or answer["meta_info"]["finish_reason"]["type"] == "abort"
                )
                assert aborted or length(answer) == new, (round_, event, answer)
        if event == "none" and round_ % 5 == 0:
            server.flush()
    assert length(ask(server, 3, 3, 1, 7)) == 3
    check_empty_handed(settled(server))
