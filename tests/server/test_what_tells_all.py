"""Requests whose answers hold more than tokens, and those that come or go in unusual ways, against plain SGLang."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from servers import Servers
from waiting import wait_for

from benchmarks.launch import RECALL, Server
from benchmarks.recall import Language
from hetero_sglang.sglang.version import release


@pytest.fixture(scope="module")
def table() -> list[list[float]]:
    """The model's rows by token id [vocabulary, hidden]."""
    weights = load_file(RECALL / "model.safetensors")
    rows: list[list[float]] = weights["model.embed_tokens.weight"].float().tolist()
    return rows


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of the model whose weights are a little different."""
    folder = tmp_path_factory.mktemp("noisy") / "model"
    shutil.copytree(RECALL, folder)
    torch.manual_seed(7)
    weights = load_file(RECALL / "model.safetensors")
    made = {name: each + 0.5 * each.float().std() * torch.randn_like(each) for name, each in weights.items()}
    save_file({name: each.to(weights[name].dtype) for name, each in made.items()}, folder / "model.safetensors")
    yield folder


def both(server: Server, plain: Server, ids: list[int], new: int = 12, **request: Any) -> list[dict[str, Any]]:
    """Ours and plain SGLang's answer to the same request."""
    sampling = request.pop("sampling", {})
    return [each.generate(ids, new, request, **sampling) for each in (server, plain)]


def logprobs(answer: dict[str, Any]) -> np.ndarray:
    """Those of the prompt's tokens, of which the first that is asked for has none."""
    return np.array(
        [float("nan") if each[0] is None else each[0] for each in answer["meta_info"]["input_token_logprobs"]]
    )


def question(language: Language, seed: int, tokens: int, names: int = 4) -> list[int]:
    document = language.document(seed, tokens, max(names, tokens // 60))
    return document.ids + language.ask(document, seed, names).ids


# ---- answers that hold more than tokens


@pytest.mark.server("short-whole", "plain")
def test_logprobs_of_a_cached_prompt_are_plain_sglangs(server: Server, servers: Servers, language: Language) -> None:
    ids, more = question(language, 31, 2000), {"return_logprob": True, "top_logprobs_num": 3, "token_ids_logprob": [5]}
    plain = servers.get("plain")
    for start in (-1, 0, 700, len(ids) - 1):  # the first fills the cache
        ours, theirs = both(server, plain, ids, logprob_start_len=start, **more)
        assert ours["output_ids"] == theirs["output_ids"]
        for part in ("input_token_logprobs", "output_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs"):
            mine, other = ours["meta_info"][part], theirs["meta_info"][part]
            assert len(mine) == len(other)
            assert [each and np.shape(each) for each in mine] == [each and np.shape(each) for each in other]
        assert len(logprobs(ours)) == (0 if start < 0 else len(ids) - start)
        assert logprobs(ours) == pytest.approx(logprobs(theirs), abs=0.01, nan_ok=True)


@pytest.mark.server("indexed", "plain")
def test_logprobs_of_a_next_turn_are_not_read_from_a_working_set(
    server: Server, servers: Servers, language: Language
) -> None:
    """The prompt behind the prefix that the turn before has left is short enough for the set to go on."""
    server.flush()
    document = language.document(32, 4000, 40)
    first, second, third = (language.ask(document, seed, 4) for seed in range(3))
    before = server.stats()["resumed_requests"]
    ids = document.ids + first.ids
    ids = ids + server.generate(ids, first.max_answer_tokens)["output_ids"]
    ask = {"return_logprob": True, "logprob_start_len": len(ids)}
    told, theirs = (each.generate(ids + second.ids, 8, ask) for each in (server, servers.get("plain")))
    assert told["meta_info"]["cached_tokens"] > 3900 and server.stats()["resumed_requests"] == before
    assert logprobs(told) == pytest.approx(logprobs(theirs), abs=0.15, nan_ok=True)
    ids = ids + second.ids + told["output_ids"]
    server.generate(ids + third.ids, 8)
    assert server.stats()["resumed_requests"] == before + 1, "nobody would go on with a set here"


@pytest.mark.server("short-whole", "plain")
def test_hidden_states_are_plain_sglangs(server: Server, servers: Servers, language: Language) -> None:
    ids, plain = question(language, 34, 900), servers.get("plain")
    for each in (server, plain):
        each.flush()
    for mode in (True, "last") if release() == "0.5.17" else (True,):  # over HTTP
        ours, theirs = both(server, plain, ids, 4, return_hidden_states=mode)
        assert ours["output_ids"] == theirs["output_ids"]
        mine, other = (each["meta_info"]["hidden_states"] for each in (ours, theirs))
        # of a cached prompt ours reads more anew than the last token
        last = [(np.atleast_2d(np.array(some, dtype=float))[-1]) for some in mine]
        wanted = [(np.atleast_2d(np.array(some, dtype=float))[-1]) for some in other]
        assert len(last) == len(wanted) and np.abs(wanted).max() > 1
        for one, two in zip(last, wanted, strict=True):
            assert np.abs(one - two).max() < 0.05 * np.abs(two).max()


@pytest.mark.server("short-whole", "plain")
def test_several_samples_and_grammars_are_plain_sglangs(server: Server, servers: Servers, language: Language) -> None:
    ids, plain = question(language, 35, 700), servers.get("plain")
    bodies: list[dict[str, Any]] = [
        {"n": 3},
        {"regex": "[a-f]{2}[0-9]{6}x"},
        {"json_schema": json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})},
        {"ebnf": 'root ::= "yes" | "no"'},
    ]
    for sampling in bodies:
        ours, theirs = both(server, plain, ids, 16, sampling=sampling)
        found = [
            [each["output_ids"] for each in (some if isinstance(some, list) else [some])] for some in (ours, theirs)
        ]
        assert found[0] == found[1] and len(found[0]) == sampling.get("n", 1)


@pytest.mark.server("short-whole", "plain")
def test_a_session_goes_on_goes_back_and_is_replaced_as_in_plain_sglang(
    server: Server, servers: Servers, language: Language
) -> None:
    ids, answers = question(language, 36, 600), []
    more = [language.ask(language.document(36, 600, 10), seed, 3).ids for seed in range(3)]
    for each in (server, servers.get("plain")):
        session = each.post("/open_session", {"capacity_of_str_len": 8000})
        told: list[Any] = []

        def go(
            tokens: list[int], each: Server = each, session: Any = session, told: list[Any] = told, **how: Any
        ) -> str:
            answer = each.generate(tokens, 8, {"session_params": {"id": session, **how}})
            told.append((answer["output_ids"], answer["meta_info"]["prompt_tokens"]))
            return str(answer["meta_info"]["id"])

        first = go(ids)
        second = go(more[0], rid=first)
        go(more[1], rid=second, offset=len(ids) + 4)
        go(more[2], rid=second, replace=True)
        each.post("/close_session", {"session_id": session})
        answers.append(told)
    assert answers[0] == answers[1]
    assert len({prompt for _, prompt in answers[0]}) > 2


# ---- requests that come and go in unusual ways, where little has room and no prefix is cached


@pytest.mark.server("few", "plain-few")
def test_embeddings_instead_of_tokens_are_answered_alike_and_shared_with_nobody(
    server: Server, servers: Servers, language: Language, table: list[list[float]]
) -> None:
    prompts = [question(language, 40 + seed, 250) for seed in range(4)]
    wanted = [servers.get("plain-few").generate(ids, 10)["output_ids"] for ids in prompts]
    assert [server.generate(ids, 10)["output_ids"] for ids in prompts] == wanted

    def embedded(ids: list[int]) -> list[int]:
        body = {
            "input_embeds": [table[token] for token in ids],
            "sampling_params": {"temperature": 0, "max_new_tokens": 10},
        }
        found: list[int] = server.post("/generate", body)["output_ids"]
        return found

    assert [embedded(ids) for ids in prompts] == wanted
    with ThreadPoolExecutor(16) as pool:  # beside prompts of tokens, with which they may share no batch of a prefill
        server.post("/pause_generation", {"mode": "in_place"})
        both = [(pool.submit(embedded, ids), pool.submit(server.generate, ids, 10)) for ids in prompts * 2]
        time.sleep(3)  # until all wait at the door
        server.post("/continue_generation")
        some, others = zip(*both, strict=True)
        assert [each.result() for each in some] == wanted * 2
        assert [each.result()["output_ids"] for each in others] == wanted * 2


@pytest.mark.server("few", "plain-few")
def test_the_preempted_and_the_paused_answer_as_in_plain_sglang(
    server: Server, servers: Servers, language: Language
) -> None:
    prompts = [question(language, 50 + seed, 500, names=8) for seed in range(6)]  # answers of 32 tokens
    plain = servers.get("plain-few")
    wanted = [plain.generate(ids, 31)["output_ids"] for ids in prompts]
    before = server.stats()["requests"]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.generate, ids, 31, {"priority": number}) for number, ids in enumerate(prompts)]
        for mode in ("in_place", "retract"):
            wait_for(lambda: server.stats()["live_requests"], "nobody runs", 0.02)
            server.post("/pause_generation", {"mode": mode})
            server.post("/continue_generation")
        assert [each.result()["output_ids"] for each in asked] == wanted
    assert server.stats()["requests"] > before + len(prompts), "nobody began again"


@pytest.mark.server("few", "plain-few")
def test_new_weights_answer_as_in_plain_sglang(
    server: Server, servers: Servers, language: Language, noisy: Path
) -> None:
    prompts, plain = [question(language, 60 + seed, 400) for seed in range(6)], servers.get("plain-few")

    def answers(each: Server) -> list[list[int]]:
        return [each.generate(ids, 12)["output_ids"] for ids in prompts]

    def change(folder: Path, **more: Any) -> None:
        for each in (server, plain):
            assert each.post("/update_weights_from_disk", {"model_path": str(folder), **more})["success"]

    old = answers(server)
    assert old == answers(plain)
    try:
        change(noisy)
        new = answers(server)
        assert new == answers(plain) and new != old
    finally:
        change(RECALL)
    assert answers(server) == answers(plain) == old
