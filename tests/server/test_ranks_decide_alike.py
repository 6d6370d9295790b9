"""Law: two ranks with other heads and other pools let in the same requests, so that neither waits for the other.

tests/core/test_queue_moves.py has the law for random profiles, pass by pass.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from test_conservation import settled
from waiting import wait_for

from benchmarks.launch import Server
from benchmarks.recall import Language, score

pytestmark = pytest.mark.server("two-ranks")

USERS = 60


def everybody(server: Server, language: Language) -> list[dict[str, Any]]:
    """Sixty users at once, each with a document of its own of some 300 tokens, who want 64 tokens whatever they say."""

    def one(seed: int) -> dict[str, Any]:
        document = language.document(seed, 230, 5)
        question = language.ask(document, seed, 4)
        reply = server.generate(document.ids + question.ids, 64, ignore_eos=True)
        right = score(reply["text"].split("\n")[0], document, question.names)
        return {"ids": reply["output_ids"], "right": right.right, "total": right.total}

    with ThreadPoolExecutor(USERS) as pool:
        return list(pool.map(one, range(100, 100 + USERS)))


def test_sixty_requests_at_once_are_answered_though_pages_are_short(server: Server, language: Language) -> None:
    before = settled(server)
    answers = everybody(server, language)
    after = settled(server)
    assert [len(answer["ids"]) for answer in answers] == [64] * USERS
    assert sum(a["right"] for a in answers) >= 0.98 * sum(a["total"] for a in answers)
    assert after["waiting_for_hot_pages"] > before["waiting_for_hot_pages"], "there was room for all"
    assert "Testing retraction" in server.log.read_text(errors="replace")
    for rank in server.get("/hetero/stats"):
        assert rank["integrity"] == "ok" and rank["hot_pages_free"] == rank["hot_pages"]


def test_aborts_leave_nothing_behind_on_any_rank(server: Server, language: Language) -> None:
    with ThreadPoolExecutor(12) as pool:
        documents = [language.document(seed, 900, 12).ids for seed in range(12)]
        jobs = [pool.submit(server.generate, ids, 200, None, ignore_eos=True) for ids in documents]
        wait_for(lambda: server.stats()["live_requests"] >= 2, "no two requests ran together")
        server.post("/abort_request", {"rid": "", "abort_all": True})
        kinds = {job.result()["meta_info"]["finish_reason"]["type"] for job in jobs if job.exception() is None}
    assert kinds <= {"abort", "length"}
    stats = settled(server)
    assert stats["integrity"] == "ok" and stats["hot_pages_free"] == stats["hot_pages"]
