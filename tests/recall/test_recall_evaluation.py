"""An evaluation counts every asked entry once, turn by turn, over sessions that share documents."""

from __future__ import annotations

import json
import re
import threading

import pytest
from fake_recall_server import FakeServer, serving

from benchmarks.recall import Language, Score, default_entries, evaluate
from hetero_sglang.errors import HeteroError


def test_a_server_that_knows_every_answer_gets_all_right(language: Language) -> None:
    with serving(FakeServer(language)) as fake:
        result = evaluate(fake.url, language, 400, documents=3, turns=3, names=4, seed=7, sessions=2)
    assert result.per_turn() == [Score(24, 24)] * 3
    assert result.score == Score(72, 72)
    assert [(e.document, e.session, e.turn) for e in result.exchanges] == [
        (document, session, turn) for document in range(3) for session in range(2) for turn in range(3)
    ]
    assert json.loads(json.dumps(result.to_json()))["misses"] == []


def test_errors_are_counted_in_their_turn_and_shown(language: Language) -> None:
    def swap_in_turn_1(answer: str, turn: int) -> str:
        return re.sub(r"(\d+) (\d+)$", r"\2 0", answer) if turn == 1 else answer

    with serving(FakeServer(language, distort=swap_in_turn_1)) as fake:
        result = evaluate(fake.url, language, 400, documents=2, turns=3, names=4)
    assert result.per_turn() == [Score(8, 8), Score(6, 8), Score(8, 8)]
    shown = result.to_json()
    assert (shown["right"], shown["total"]) == (22, 24)
    assert [miss["turn"] for miss in shown["misses"]] == [1, 1]
    assert all(miss["said"] + "\n" != miss["expected"] for miss in shown["misses"])


def test_each_prompt_is_the_one_before_with_the_servers_own_answer_and_a_question(
    language: Language,
) -> None:
    with serving(FakeServer(language, distort=lambda answer, turn: f" no {turn}")) as fake:
        result = evaluate(fake.url, language, 400, documents=1, turns=3, names=2)
    assert result.score == Score(0, 6)
    first, second, third = (request["input_ids"] for request in fake.requests)
    assert first[:400] == language.document(0, 400, default_entries(400)).ids
    assert second[: len(first)] == first
    assert third[: len(second)] == second
    assert language.decode(third).count(" no ") == 2
    assert [turn[0] for turn in result.meta_per_turn("cached_tokens")] == [0, len(first), len(second)]
    assert result.meta_per_turn("absent") == [[None]] * 3


def test_sessions_about_one_document_share_its_tokens_and_ask_differently(language: Language) -> None:
    with serving(FakeServer(language)) as fake:
        result = evaluate(fake.url, language, 400, documents=1, turns=1, names=4, sessions=3)
    cached = [exchange.reply.meta["cached_tokens"] for exchange in result.exchanges]
    assert cached[0] == 0
    assert min(cached[1:]) >= 400
    assert len({tuple(request["input_ids"]) for request in fake.requests}) == 3


def test_as_many_sessions_run_at_once_as_asked_for(language: Language) -> None:
    waiting = FakeServer(language, gathering=threading.Barrier(3))
    with serving(waiting) as fake:
        result = evaluate(fake.url, language, 300, documents=3, turns=2, names=2, concurrency=3)
    assert result.score == Score(12, 12)


def test_evaluations_that_cannot_be_are_refused(language: Language) -> None:
    for wrong in ({"documents": 0}, {"turns": 0}, {"sessions": 0}, {"concurrency": 0}):
        with pytest.raises(HeteroError, match="1 or more"):
            evaluate("http://127.0.0.1:9", language, 300, **wrong)
    with pytest.raises(HeteroError, match="longer document"):
        evaluate("http://127.0.0.1:9", language, 30)
