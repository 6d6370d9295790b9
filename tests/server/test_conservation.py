"""Nothing is lost: every slot, hot page and host row is accounted for, whatever becomes of the requests."""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from waiting import wait_for

from benchmarks.launch import Server
from benchmarks.recall import Language

pytestmark = pytest.mark.server("usual")


def settled(server: Server) -> dict[str, Any]:
    """The statistics once no request is left."""

    def idle() -> dict[str, Any] | None:
        stats = server.stats()
        runs = stats["live_requests"] or stats["rankings_under_way"] or not stats["integrity_current"]
        return None if runs else stats

    return wait_for(idle, lambda: f"requests or rankings are left over: {server.stats()}")


def check_empty_handed(stats: dict[str, Any]) -> None:
    assert stats["integrity"] == "ok"
    assert stats["hot_pages_free"] == stats["hot_pages"]
    cached = stats["token_slots"] - stats["token_slots_free"]
    assert 0 <= stats["token_slots_written"] <= cached == stats["token_slots_cached"]


def test_sixteen_users_of_one_document_hold_its_slots_once(server: Server, language: Language) -> None:
    assert settled(server)["token_slots_written"] == 0
    document = language.document(1, 8192, 80)
    questions = [language.ask(document, seed, 2) for seed in range(16)]
    server.generate(document.ids + questions[0].ids, questions[0].max_answer_tokens)
    alone = settled(server)["token_slots_written"]

    def ask(question: Any) -> int:
        reply = server.generate(document.ids + question.ids, question.max_answer_tokens)
        return reply["meta_info"]["cached_tokens"]

    with ThreadPoolExecutor(16) as pool:
        cached = list(pool.map(ask, questions))
    stats = settled(server)
    check_empty_handed(stats)
    assert min(cached) >= 8192 - 64  # all but the observed queries came from the tree
    own = sum(len(q.ids) + q.max_answer_tokens + 40 for q in questions)
    assert alone >= 8192 and stats["token_slots_written"] <= alone + own < 2 * 8192


def play(server: Server, language: Language, rounds: int, every: int) -> None:
    """So many rounds of requests that finish, are aborted, retracted and evicted, and of flushes; what is left is
    looked at in every round of `every`."""
    rng = random.Random(7)
    documents = [language.document(seed, 900, 12) for seed in range(6)]

    def drawn(seed: int) -> tuple[list[int], int]:
        document = rng.choice(documents)
        tail = language.ask(document, seed, rng.randint(1, 8)).ids
        return document.ids[: rng.choice((40, 300, 700))] + tail, rng.choice((1, 4, 16))

    def finishes(ids: list[int], new: int) -> bool:
        try:
            reply = server.generate(ids, new, ignore_eos=True)
        except urllib.error.HTTPError:
            return False
        return reply["meta_info"]["finish_reason"]["type"] != "abort"

    def abort_all() -> None:
        server.post("/abort_request", {"rid": "", "abort_all": True})

    for round_ in range(rounds):
        with ThreadPoolExecutor(4) as pool:
            asked = [drawn(round_ * 10 + index) for index in range(rng.randint(1, 4))]
            jobs = [pool.submit(finishes, *each) for each in asked]
            if round_ % 3 == 0:  # who is as far as that
                time.sleep(rng.uniform(0, 0.4))
                abort_all()
            ends = [job.result() for job in jobs]
        assert all(ends) or round_ % 3 == 0, "nobody was to be aborted"
        if round_ % 7 == 6:
            server.flush()
            assert settled(server)["token_slots_written"] == 0
        if round_ % every == 0:
            check_empty_handed(settled(server))
    with ThreadPoolExecutor(1) as pool:  # one that is running for certain
        job = pool.submit(finishes, documents[0].ids[:300], 2000)
        wait_for(lambda: server.stats()["live_requests"], "the request did not begin")
        abort_all()
        assert not job.result()
    stats = settled(server)
    check_empty_handed(stats)
    log = server.log.read_text(errors="replace")
    assert "Testing retraction" in log, "no retraction was forced"
    assert "lost track of memory" not in log
    assert stats["compressed_requests"] > 0


@pytest.mark.server("small")
@pytest.mark.parametrize("rounds", [20, pytest.param(50, marks=pytest.mark.slow)])
def test_rounds_of_finish_abort_retract_evict_and_flush_lose_nothing(
    rounds: int, server: Server, language: Language
) -> None:
    play(server, language, rounds, every=5)


@pytest.mark.server("small")
def test_full_hot_pool_makes_requests_wait_not_fail(server: Server, language: Language) -> None:
    """Twelve requests that together want more hot pages than there are: all are answered, some waited."""
    before = settled(server)
    document = language.document(3, 420, 8)
    questions = [language.ask(document, seed, 4) for seed in range(12)]
    with ThreadPoolExecutor(12) as pool:
        replies = list(
            pool.map(lambda q: server.generate(q.ids + document.ids[1:] + q.ids, 24, ignore_eos=True), questions)
        )
    assert all(len(r["output_ids"]) == 24 for r in replies)
    after = settled(server)
    assert after["waiting_for_hot_pages"] > before["waiting_for_hot_pages"]
    check_empty_handed(after)


def test_an_aborted_client_leaves_nothing_behind(server: Server, language: Language) -> None:
    document = language.document(5, 3000, 30)
    body = {"input_ids": document.ids, "sampling_params": {"max_new_tokens": 20000, "ignore_eos": True}}
    client = http.client.HTTPConnection("127.0.0.1", server.port)
    client.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
    wait_for(lambda: server.stats()["live_requests"], "the request did not begin")
    client.close()
    check_empty_handed(settled(server))
