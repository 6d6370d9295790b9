"""Early exit in the real server: tokens that run all layers are full depth's, whoever has left before them."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from servers import Servers
from test_conservation import check_empty_handed, play, settled
from test_turns import converse
from tiny_exits import LAYERS, MARKS

from benchmarks.exit_identity import prompts
from benchmarks.launch import Server
from benchmarks.recall import Language

DEPTH = 8


def first_choices(server: Server, ids: list[int], start: int, adapter: str | None = None) -> list[int]:
    """Full depth's choice of each token from `start` on, given those before it."""
    asks = {"return_logprob": True, "logprob_start_len": start - 1, "top_logprobs_num": 1, "lora_path": adapter}
    reply = server.generate(ids, 1, asks)
    return [each[0][1] for each in reply["meta_info"]["input_top_logprobs"][1:]]


def check_tokens(plain: Server, prompt: list[int], said: list[int], adapter: str | None = None) -> int:
    """What is no mark is full depth's; how many are marks."""
    choices = first_choices(plain, prompt + said, len(prompt), adapter)
    assert len(choices) == len(said) and not set(choices) & set(MARKS)
    wrong = [(n, mine, full) for n, (mine, full) in enumerate(zip(said, choices, strict=True))
             if mine not in MARKS and mine != full]  # fmt: skip
    assert not wrong
    return sum(token in MARKS for token in said)


def exits_of(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.stats()["early_exit"]
    return found


@pytest.mark.server("exits", "plain-precise")
def test_deep_tokens_are_full_depth_s(server: Server, servers: Servers, language: Language) -> None:
    """Alone, then several at once that come and go, in batches that leave and ones that are too large for it."""
    plain, before = servers.get("plain-precise"), exits_of(server)
    asked = prompts(language, 12, 3)
    lengths = [random.Random(n).choice((3, 20, 50)) for n in range(len(asked))]
    pairs = list(zip(asked, lengths, strict=True))
    left = 0
    for ids, count in pairs[:4]:
        left += check_tokens(plain, ids, server.generate(ids, count, ignore_eos=True)["output_ids"])
    counted = sum(exits_of(server)["exits"][str(n)] - before["exits"][str(n)] for n in LAYERS)
    assert 0 < left <= counted <= left + 4  # SGLang runs a step more of a request before it sees that it has ended
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda x: server.generate(x[0], x[1], ignore_eos=True), pairs))
    for ids, reply in zip(asked, replies, strict=True):
        check_tokens(plain, ids, reply["output_ids"])


@pytest.mark.server("exits", "plain-precise")
def test_a_next_turn_shares_what_is_whole(server: Server, servers: Servers, language: Language) -> None:
    plain, ids, before = servers.get("plain-precise"), prompts(language, 1, 8)[0], 0
    for turn in range(4):
        reply = server.generate(ids, 30, ignore_eos=True)
        check_tokens(plain, ids, reply["output_ids"])
        if turn:
            assert before - 17 <= reply["meta_info"]["cached_tokens"] <= before
        ids = ids + reply["output_ids"] + prompts(language, 1, turn)[0][:20]
        before = len(ids) - 20  # the last one too, if SGLang ran a step more before it saw that the request had ended
    assert exits_of(server)["waiting"] == 0


@pytest.mark.server("exits")
def test_adapters_go_on_with_their_own_tokens(server: Server, language: Language) -> None:
    """Two and the model alone, in one batch; a prefill runs all layers and says what full depth would."""
    ids = prompts(language, 1, 6)[0]
    adapters = ["a", None, "b"]
    with ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda a: server.generate(ids, 40, {"lora_path": a}, ignore_eos=True), adapters))
    said = [reply["output_ids"] for reply in replies]
    assert said[0] != said[1] != said[2]
    for each, adapter in zip(said, adapters, strict=True):
        assert check_tokens(server, ids, each, adapter) > 0


@pytest.mark.server("exits")
def test_replies_that_tell_more_than_tokens_run_all_layers(server: Server, language: Language) -> None:
    ids = prompts(language, 1, 4)[0]
    said = server.generate(ids, 30, {"return_logprob": True}, ignore_eos=True)["output_ids"]
    assert not set(said) & set(MARKS)
    assert set(server.generate(ids, 30, ignore_eos=True)["output_ids"]) & set(MARKS)


@pytest.mark.server("exits")
def test_metrics_tell_how_deep_tokens_ran(server: Server, language: Language) -> None:
    server.generate(prompts(language, 1, 5)[0], 60, ignore_eos=True)
    stats, lines = exits_of(server), server.get("/metrics").splitlines()
    said = {line.split("{")[0].removeprefix("sglang:hetero_") for line in lines if line.startswith("sglang:hetero_")}
    assert said == {
        "exits_total", "exit_tokens_total", "exit_layers_total", "exit_mean_depth", "exits_compared_total",
        "exits_agreed_total",
    }  # fmt: skip
    assert LAYERS[0] < stats["mean_depth"] < DEPTH == stats["layers"]


def check_whole(server: Server, plain: Server, language: Language) -> None:
    asked = prompts(language, 8, 11)
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda ids: server.generate(ids, 40, ignore_eos=True), asked))
    marks = [check_tokens(plain, ids, reply["output_ids"]) for ids, reply in zip(asked, replies, strict=True)]
    assert sum(marks) > 20
    check_empty_handed(settled(server))


@pytest.mark.server("exits-tiered", "plain-precise")
def test_requests_held_whole_say_what_full_depth_says(server: Server, servers: Servers, language: Language) -> None:
    """Retracted by force, in pages, several at once."""
    check_whole(server, servers.get("plain-precise"), language)


@pytest.mark.server("exits-tiered", "plain-precise")
def test_adapters_on_working_sets(server: Server, servers: Servers, language: Language) -> None:
    """What runs all layers is said as by a server without branches; what leaves goes on with its own adapter."""
    plain, asked = servers.get("plain-precise"), prompts(language, 2, 21)
    jobs = [(ids, adapter) for adapter in ("a", None, "b") for ids in asked]

    def say(server: Server, ids: list[int], adapter: str | None, **asks: Any) -> list[int]:
        said: list[int] = server.generate(ids, 40, {"lora_path": adapter, **asks}, ignore_eos=True)["output_ids"]
        return said

    with ThreadPoolExecutor(3) as pool:
        whole = list(pool.map(lambda job: say(server, *job, return_logprob=True), jobs))
        said = list(pool.map(lambda job: say(server, *job), jobs))
    assert whole == [say(plain, *job) for job in jobs]
    assert whole[0] != whole[2] != whole[4]
    for (ids, adapter), mine in zip(jobs, said, strict=True):
        assert check_tokens(plain, ids, mine, adapter) > 0
    check_empty_handed(settled(server))


@pytest.mark.server("exits-parts", "plain-precise")
def test_in_parts_too(server: Server, servers: Servers, language: Language) -> None:
    assert "parts of steps are graphs" in server.log.read_text(errors="replace")
    check_whole(server, servers.get("plain-precise"), language)
    for ids in prompts(language, 8, 30):  # passes that are no parts come after ones that are, with tokens that waited
        server.generate(ids, 12, ignore_eos=True)
        said = server.generate(ids, 3, {"return_logprob": True}, ignore_eos=True)["output_ids"]
        assert not set(said) & set(MARKS)


@pytest.mark.server("exits-parts")
def test_nothing_is_lost_whoever_waits(server: Server, language: Language) -> None:
    """Requests that finish, are aborted, retracted and evicted, exact and compressed; next turns of compressed ones."""
    play(server, language, 24, 8)
    converse(server, language, 3, 900, 3)
    stats = settled(server)
    check_empty_handed(stats)
    assert stats["early_exit"]["waiting"] == 0 and stats["compressed_requests"] > 0
