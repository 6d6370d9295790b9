"""Nothing is lost: every slot, hot page and host row is accounted for, whatever becomes of the requests."""

from __future__ import annotations

import random
import threading
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from benchmarks.launch import Server
from benchmarks.recall import Language

pytestmark = pytest.mark.server("usual")


def settled(server: Server) -> dict[str, Any]:
    """The statistics once no request is left."""
    for _ in range(200):
        stats = server.stats()
        if stats["live_requests"] == 0 and stats["rankings_under_way"] == 0 and stats["integrity_current"]:
            return stats
        time.sleep(0.05)
    raise AssertionError(f"requests or rankings are left over: {stats}")


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


def play(server: Server, language: Language, rounds: int, every: int, least: int) -> None:
    """So many rounds of requests that finish, more than `least`, are aborted, retracted and evicted, and of flushes;
    what is left is looked at in every round of `every`."""
    rng = random.Random(7)
    documents = [language.document(seed, 900, 12) for seed in range(6)]
    outcomes = {"finished": 0, "aborted": 0}

    def one(round_: int, index: int) -> None:
        document = rng.choice(documents)
        tail = language.ask(document, round_ * 10 + index, rng.randint(1, 8)).ids
        ids = document.ids[: rng.choice((40, 300, 700))] + tail
        try:
            reply = server.generate(ids, rng.choice((1, 4, 16)), ignore_eos=True)
        except urllib.error.HTTPError:
            outcomes["aborted"] += 1
            return
        kind = reply["meta_info"]["finish_reason"]["type"]
        outcomes["aborted" if kind == "abort" else "finished"] += 1

    for round_ in range(rounds):
        threads = [threading.Thread(target=one, args=(round_, i)) for i in range(rng.randint(1, 4))]
        for thread in threads:
            thread.start()
        if round_ % 3 == 0:
            time.sleep(rng.uniform(0, 0.4))
            server.post("/abort_request", {"rid": "", "abort_all": True})
        for thread in threads:
            thread.join()
        if round_ % 7 == 6:
            server.flush()
            assert settled(server)["token_slots_written"] == 0
        if round_ % every == 0:
            check_empty_handed(settled(server))
    stats = settled(server)
    check_empty_handed(stats)
    log = server.log.read_text(errors="replace")
    assert outcomes["finished"] > least and outcomes["aborted"] > 0
    assert "Testing retraction" in log, "no retraction was forced"
    assert "lost track of memory" not in log
    assert stats["compressed_requests"] > 0


@pytest.mark.server("small")
def test_fifty_rounds_of_finish_abort_retract_evict_and_flush_lose_nothing(server: Server, language: Language) -> None:
    play(server, language, rounds=50, every=5, least=40)


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
    with pytest.raises((TimeoutError, OSError)):
        server.post(
            "/generate",
            {"input_ids": document.ids, "sampling_params": {"max_new_tokens": 20000, "ignore_eos": True}},
            timeout=1.5,
        )
    check_empty_handed(settled(server))
