"""Turns of a conversation go on with the working set of the one before, while its pages are not needed."""

from __future__ import annotations

from typing import Any

import pytest
from servers import Servers
from waiting import wait_for

from benchmarks.launch import Server
from benchmarks.recall import Language
from benchmarks.recall.scoring import score
from hetero_sglang.sglang.version import release

READ = ("prefix_rows_read", "prefix_rows_copied")


def grown(server: Server, before: dict[str, Any], *names: str) -> list[int]:
    stats = server.stats()
    return [stats[name] - before[name] for name in names]


def converse(
    server: Server, language: Language, seed: int, length: int, turns: int
) -> list[tuple[list[int], Any, Any]]:
    """Prompt, reply and score of each turn."""
    document = language.document(seed, length, length // 100)
    ids, told = list(document.ids), []
    for turn in range(turns):
        question = language.ask(document, turn, 3)
        ids = ids + question.ids
        reply = server.generate(ids, question.max_answer_tokens)
        told.append((ids, reply, score(language.decode(reply["output_ids"]), document, question.names)))
        ids = ids + reply["output_ids"]
    return told


@pytest.mark.server("short-whole", "plain")
def test_turns_that_are_held_whole_give_plain_sglang_s_tokens_and_bring_nothing(
    server: Server, servers: Servers, language: Language
) -> None:
    server.flush()
    before = server.stats()
    ours = converse(server, language, 3, 1500, 4)
    theirs = converse(servers.get("plain"), language, 3, 1500, 4)
    assert [reply["output_ids"] for _, reply, _ in ours] == [reply["output_ids"] for _, reply, _ in theirs]
    cached = [
        (ours[n][1]["meta_info"]["cached_tokens"], theirs[n][1]["meta_info"]["cached_tokens"]) for n in range(1, 4)
    ]
    assert all(own == other for own, other in cached), "a full hit is one here too"
    assert grown(server, before, "resumed_requests", *READ) == [3, 0, 0]


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(1200, marks=pytest.mark.server("indexed")),  # compressed
        pytest.param(600, marks=pytest.mark.server("short-whole")),
    ],
)
def test_a_branch_does_not_go_on_with_the_set_of_another(server: Server, language: Language, length: int) -> None:
    """Prompts that differ in their last tokens alone, and are cached: each is answered, and not the other."""
    document = language.document(31, length, length // 48)
    questions = [language.ask(document, seed, 2) for seed in range(3)]
    prompts = [document.ids + question.ids for question in questions]
    for prompt in prompts:
        server.generate(prompt, 0)
    for question, prompt in zip(questions, prompts, strict=True):
        text = server.generate(prompt, question.max_answer_tokens)["text"]
        assert score(text, document, question.names).right == 2, f"{question.names} were asked for, not {text}"


@pytest.mark.server("short-whole")
def test_a_set_of_a_short_beginning_is_not_taken_for_a_long_cached_one(server: Server, language: Language) -> None:
    server.flush()
    document = language.document(32, 1200, 12).ids
    tails = [language.document(33 + n, 400, 4).ids for n in range(2)]  # more than a set may lack
    server.generate(document + tails[0], 1)
    server.generate(document[:160] + tails[0][:20], 1)  # its set could serve all that begin like it
    reply = server.generate(document + tails[1], 1)
    assert reply["meta_info"]["cached_tokens"] >= len(document)


@pytest.mark.server("indexed")
def test_long_turns_read_their_prefix_as_decode_steps_do(server: Server, language: Language) -> None:
    server.flush()
    before = server.stats()
    told = converse(server, language, 5, 5000, 4)
    assert sum(each.right for *_, each in told) == sum(each.total for *_, each in told)
    first = len(told[0][0]) // 4096 * 4096  # prefilled in chunks, of which the second read the first
    layers = server.stats()["prefix_rows_read"] and 6
    new = [len(ids) - reply["meta_info"]["cached_tokens"] for ids, reply, _ in told[1:]]
    assert grown(server, before, "resumed_requests", "appended_tokens") == [3, sum(new)]
    assert sum(grown(server, before, *READ)) <= first * layers
    assert server.stats()["late_rows"] == before["late_rows"]


@pytest.mark.server("indexed")
def test_who_shares_a_beginning_alone_gets_nothing_of_another_s(server: Server, language: Language) -> None:
    """Two users of a document, turn by turn: each goes on with its own set."""
    server.flush()
    document = language.document(6, 4000, 40)
    talks = [list(document.ids), list(document.ids)]
    for turn in range(3):
        for user, ids in enumerate(talks):
            question = language.ask(document, 10 * user + turn, 3)
            reply = server.generate(ids + question.ids, question.max_answer_tokens)
            right = score(language.decode(reply["output_ids"]), document, question.names)
            assert right.right == right.total, (turn, user)
            talks[user] = ids + question.ids + reply["output_ids"]


@pytest.mark.server("indexed")
def test_whoever_needs_the_pages_of_a_parked_set_gets_them(server: Server, language: Language) -> None:
    server.flush()
    told = converse(server, language, 7, 3000, 1)
    assert server.stats()["parked_requests"] == 1
    waited = server.stats()["waiting_for_hot_pages"]
    others = [language.document(100 + n, 480, 4).ids for n in range(24)]  # kept whole: more than all pages hold
    for ids in others:
        server.generate(ids, 4)
    stats = server.stats()
    assert stats["waiting_for_hot_pages"] == waited and 0 < stats["parked_requests"] < len(others)
    ids, reply, _ = told[0]
    document = language.document(7, 3000, 30)
    question = language.ask(document, 9, 3)
    again = server.generate(ids + reply["output_ids"] + question.ids, question.max_answer_tokens)
    right = score(language.decode(again["output_ids"]), document, question.names)
    assert right.right == right.total, "its set was gone: it began anew"
    server.flush()
    wait_for(lambda: server.stats()["integrity_current"], "something still runs")
    stats = server.stats()
    assert stats["integrity"] == "ok" and stats["parked_requests"] == 0 and stats["hot_pages_cached"] == 0
    assert stats["hot_pages_free"] == stats["hot_pages"]


@pytest.mark.server("indexed")
def test_samples_of_a_prompt_go_on_from_one_set(server: Server, language: Language) -> None:
    """SGLang computes the prompt once, then each sample asks: they get copies of what that has left, unless the first
    has decoded before the others come, as may be on a busy machine."""
    document = language.document(8, 3000, 30)
    question = language.ask(document, 1, 3)
    params = {"max_new_tokens": question.max_answer_tokens, "temperature": 0.0, "n": 4}

    def all_shared() -> bool:
        server.flush()
        before = server.stats()
        replies = server.post("/generate", {"input_ids": document.ids + question.ids, "sampling_params": params})
        assert len(replies) == 4
        for reply in replies:
            right = score(language.decode(reply["output_ids"]), document, question.names)
            assert right.right == right.total
        shared, *read = grown(server, before, "shared_requests", *READ)
        return shared >= 2 and sum(read) == 0

    wait_for(all_shared, "the samples do not share what their prompt has left")


@pytest.mark.parametrize("name", ["extra_key", *(["cache_salt"] if release() != "0.5.17" else [])])
@pytest.mark.server("short-whole")
def test_what_tells_prefixes_apart_tells_working_sets_apart(server: Server, language: Language, name: str) -> None:
    server.flush()
    document = language.document(12, 600, 6)
    first, second = (language.ask(document, seed, 2) for seed in (1, 2))
    reply = server.generate(document.ids + first.ids, first.max_answer_tokens, {name: "a"})
    ids, before = document.ids + first.ids + reply["output_ids"] + second.ids, server.stats()
    for key, resumed in (("b", 0), ("a", 1)):
        reply = server.generate(ids, second.max_answer_tokens, {name: key})
        right = score(language.decode(reply["output_ids"]), document, second.names)
        assert right.right == right.total
        assert (reply["meta_info"]["cached_tokens"] > 0) == reply["meta_info"]["hetero"]["resumed"] == bool(resumed)
        assert grown(server, before, "resumed_requests") == [resumed]
