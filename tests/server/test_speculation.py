"""Draft tokens in the real server: the tokens that there would be without, and nothing lost.

SGLang drafts by n-grams of what it has answered before: a question that is asked again is drafted well."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from servers import Servers
from test_conservation import check_empty_handed, play, settled
from test_lora import EVERY, prompt, say, together
from test_turns import converse
from waiting import wait_for

from benchmarks.identity import Case, cases, collect, differing
from benchmarks.launch import Server
from benchmarks.recall import Language, evaluate
from hetero_sglang.sglang.metrics import PREFIX

IN_PRECISION = (
    pytest.param("drafts", marks=pytest.mark.server("drafts", "plain-precise")),
    pytest.param("drafts-ranks", marks=[pytest.mark.server("drafts-ranks", "plain-precise"), pytest.mark.slow]),
)
COUNTED = [
    f"{PREFIX}{name}_total"
    for name in ("requests", "resumed_requests", "compressed_requests", "draft_tokens", "accepted_tokens")
]
WHOLE = 1000  # tokens, which are held whole


def accepted(reply: dict[str, Any]) -> float:
    """Tokens of a verification, on average."""
    return float(reply["meta_info"]["spec_accept_length"])


@pytest.mark.parametrize("name", IN_PRECISION)
def test_greedy_tokens_are_those_without_speculation(
    name: str, server: Server, servers: Servers, language: Language
) -> None:
    """Prompts of every kind, alone and eight at once, and again, when drafts are good."""
    before, plain = server.stats()["compressed_requests"], servers.get("plain-precise")
    requests = cases(language, 8, WHOLE, 5)
    wanted = collect(plain, requests)
    assert differing(requests, wanted, collect(server, requests)) == []
    again = [Case(x.kind, x.ids, x.max_new, alone=True) for x in requests]
    assert differing(again, collect(plain, again), collect(server, again)) == []
    assert server.stats()["compressed_requests"] == before
    replies = [server.generate(x.ids, 24, ignore_eos=True) for x in requests[:6] for _ in range(2)]
    assert max(accepted(reply) for reply in replies[1::2]) > 3, "no draft was any good"


@pytest.mark.server("drafts", "plain-precise")
def test_adapters_say_what_they_say_without_speculation(server: Server, servers: Servers, language: Language) -> None:
    """Each alone and all in one batch, and again, when drafts are good: of what any of them has answered."""
    before, plain = server.stats()["compressed_requests"], servers.get("plain-precise")
    prompts = [prompt(language, seed, length) for seed, length in ((1, 150), (2, 300), (3, 800))]
    wanted = {by: [say(plain, ids, by)[0] for ids in prompts] for by in EVERY}
    assert wanted[None] != wanted["a"] != wanted["b"] != wanted[None]
    for _ in range(2):
        assert {by: [say(server, ids, by)[0] for ids in prompts] for by in EVERY} == wanted
        for ids in prompts:
            assert together(server, ids) == together(plain, ids)
    assert server.stats()["compressed_requests"] == before
    for by in EVERY:
        replies = [
            server.generate(ids, 24, request={"lora_path": by}, ignore_eos=True) for ids in prompts for _ in "ab"
        ]
        assert max(accepted(reply) for reply in replies[1::2]) > 3, "no draft was any good"


def by_rank(server: Server) -> list[dict[str, float]]:
    """What each rank has counted of its requests, exported as it became idle."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(server.get("/metrics")):
        for sample in family.samples:
            if sample.name in COUNTED:
                found.setdefault(sample.labels["tp_rank"], {})[sample.name] = sample.value
    return [found[rank] for rank in sorted(found)]


@pytest.mark.server("drafts-ranks")
def test_ranks_decide_alike_with_drafts(server: Server, language: Language) -> None:
    """Of requests that are compressed, retracted by force, several at once: what stays, and who is let in."""
    before = settled(server)
    for _ in range(2):
        result = evaluate(server.url, language, 1500, documents=4, turns=2, names=4, seed=21, concurrency=4)
        assert result.score.right == result.score.total == 32, result.to_json()
    after = settled(server)
    check_empty_handed(after)
    assert after["compressed_requests"] - before["compressed_requests"] >= 16
    assert after["accepted_tokens"] > before["accepted_tokens"] + 100
    assert "Testing retraction" in server.log.read_text(errors="replace")

    def alike() -> bool:
        one, other = by_rank(server)
        return one == other and one[f"{PREFIX}accepted_tokens_total"] == after["accepted_tokens"]

    wait_for(alike, lambda: f"ranks have counted {by_rank(server)}, not {after['accepted_tokens']} accepted tokens")
    assert [len(counted) for counted in by_rank(server)] == [len(COUNTED)] * 2


def check_drafts(server: Server, plain: Server, language: Language) -> None:
    """Greedy tokens are those of all layers, of several at once; some drafts are good."""
    requests = cases(language, 8, WHOLE, 5)
    assert differing(requests, collect(plain, requests), collect(server, requests)) == []
    replies = [server.generate(x.ids, 24, ignore_eos=True) for x in requests[:6]]
    assert max(accepted(reply) for reply in replies) > 2, "no draft was any good"


@pytest.mark.server("drafts-self", "plain-precise")
def test_drafts_of_a_branch_lose_nothing(server: Server, servers: Servers, language: Language) -> None:
    """Greedy tokens are those of all layers; several at once, and of requests whose heads keep a part."""
    check_drafts(server, servers.get("plain-precise"), language)
    told = converse(server, language, 3, 1800, 3)
    assert all(accepted(reply) >= 1 for _, reply, _ in told)
    stats = settled(server)
    check_empty_handed(stats)
    assert stats["early_exit"]["tokens"] == 0 and stats["compressed_requests"] > 0


@pytest.mark.server("drafts", "plain-precise")
def test_a_next_turn_goes_on_where_the_one_before_has_ended(
    server: Server, servers: Servers, language: Language
) -> None:
    """With its tokens, of which the last ones came in one verification, and none that were rejected."""
    before = server.stats()
    ours = converse(server, language, 3, 400, 4)
    theirs = converse(servers.get("plain-precise"), language, 3, 400, 4)
    assert [reply["output_ids"] for _, reply, _ in ours] == [reply["output_ids"] for _, reply, _ in theirs]
    stats = server.stats()
    assert stats["resumed_requests"] - before["resumed_requests"] == 3
    assert stats["prefix_rows_read"] == before["prefix_rows_read"]


@pytest.mark.server("drafts")
def test_compressed_requests_answer_as_well(server: Server, language: Language) -> None:
    """Each question twice: drafted badly, then well; the second turn attends to what the first has left."""
    for _ in range(2):
        result = evaluate(server.url, language, 4096, documents=1, turns=2, names=8, seed=21)
        assert result.score.right == result.score.total == 16, result.to_json()
    stats = server.stats()
    assert stats["compressed_requests"] >= 2 and stats["fetched_rows"] > 0
    document = language.document(21, 3000, 30)
    question = language.ask(document, 1, 8)
    server.generate(document.ids + question.ids, question.max_answer_tokens)
    before = server.stats()
    reply = server.generate(document.ids + question.ids, question.max_answer_tokens, stop=["\n"])
    assert accepted(reply) > 3
    stats, said = server.stats(), reply["meta_info"]["completion_tokens"] - 1  # its prompt has said the first
    grown = {name: stats[name] - before[name] for name in ("decoded_tokens", "draft_tokens", "accepted_tokens")}
    assert said <= grown["decoded_tokens"] < said + 8 and grown["draft_tokens"] % 7 == 0
    assert grown["decoded_tokens"] == grown["draft_tokens"] // 7 + grown["accepted_tokens"]


@pytest.mark.server("drafts-small")
def test_rounds_of_finish_abort_retract_evict_and_flush_lose_nothing(server: Server, language: Language) -> None:
    """In pages of 16 tokens, of which rejected ones are given back with the others."""
    play(server, language, rounds=12, every=2)


@pytest.mark.server("drafts-small")
def test_requests_that_are_retracted_say_what_they_would_have(server: Server, language: Language) -> None:
    """Many at once in little room, in pages, against each alone."""
    server.flush()
    documents = [language.document(seed, 260, 8) for seed in range(40, 46)]
    asked = [(x.ids, language.ask(x, 1, 4)) for x in documents]
    alone = [server.generate(ids + q.ids, q.max_answer_tokens, stop=["\n"])["output_ids"] for ids, q in asked]
    server.flush()
    with ThreadPoolExecutor(6) as pool:
        told = list(
            pool.map(
                lambda x: server.generate(x[0] + x[1].ids, x[1].max_answer_tokens, stop=["\n"])["output_ids"], asked
            )
        )
    assert told == alone
    check_empty_handed(settled(server))
