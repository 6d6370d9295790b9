"""LoRA adapters in one server: plain SGLang's tokens where every row is kept; no adapter has another's rows."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from servers import ALIKE, POLICY_ROOM, RATIO, Servers
from sglang.srt.lora.lora_registry import LoRARef
from test_turns import grown
from tiny_adapters import lora_paths, write_adapter

from benchmarks.launch import Server
from benchmarks.recall import Language
from benchmarks.recall.scoring import Score, score

EVERY = (None, "a", "b")  # the model alone, and its two adapters


def say(server: Server, ids: list[int], adapter: str | None, count: int = 24, **request: Any) -> tuple[list[int], int]:
    """Greedy tokens, and how many of the prompt's were cached."""
    reply = server.generate(ids, count, request={"lora_path": adapter, **request})
    return reply["output_ids"], reply["meta_info"]["cached_tokens"]


def together(server: Server, ids: list[int], count: int = 24) -> list[list[int]]:
    """Of the model and both adapters, in one batch."""
    params = {"temperature": 0, "max_new_tokens": count}
    body = {"input_ids": [ids] * len(EVERY), "lora_path": list(EVERY), "sampling_params": params}
    return [reply["output_ids"] for reply in server.post("/generate", body)]


def prompt(language: Language, seed: int, length: int) -> list[int]:
    document = language.document(seed, length, 6)
    return document.ids + language.ask(document, seed, 2).ids


def talk(
    server: Server, language: Language, adapters: Sequence[str | None], length: int, turns: int = 3
) -> dict[str | None, list[list[int]]]:
    """Replies by adapter of conversations that begin alike, turn by turn in the order of `adapters`."""
    server.flush()
    document = language.document(5, length, length // 100)
    ids, told = {each: list(document.ids) for each in adapters}, {each: [] for each in adapters}
    for turn in range(turns):
        question = language.ask(document, turn, 3)
        for each in adapters:
            prompt = ids[each] + question.ids
            reply, cached = say(server, prompt, each, question.max_answer_tokens + 8)
            assert (cached > 0.9 * len(ids[each])) == (turn > 0), "its own turns are cached, and nobody else's"
            ids[each] = prompt + reply
            told[each].append(reply)
    return told


def refused(server: Server, path: str, body: Any) -> str:
    """What is said to a request that is refused with a 400."""
    with pytest.raises(urllib.error.HTTPError) as refusal:
        server.post(path, body)
    assert refusal.value.code == 400
    return str(refusal.value.read())


@pytest.mark.server("lora-whole", "plain-precise")
def test_where_every_row_is_kept_adapters_say_what_plain_sglang_s_do(
    server: Server, servers: Servers, language: Language
) -> None:
    plain = servers.get("plain-precise")
    prompts = [prompt(language, seed, length) for seed, length in ((1, 150), (2, 700))]
    ours, theirs = ([[say(each, ids, by)[0] for ids in prompts] for by in EVERY] for each in (server, plain))
    assert ours == theirs and ours[0] != ours[1] != ours[2] != ours[0]
    for each in (server, plain):
        each.flush()
    ids = prompt(language, 4, 300)
    assert together(server, ids) == together(plain, ids)
    assert talk(server, language, EVERY, 800) == talk(plain, language, EVERY, 800)


@pytest.mark.server("lora")
def test_each_adapter_s_turns_are_those_that_it_has_alone(server: Server, language: Language) -> None:
    """Compressed, with the working sets of the turns before, which begin with the same tokens."""
    alone = {each: talk(server, language, [each], 2500)[each] for each in EVERY}
    before = server.stats()
    assert talk(server, language, EVERY, 2500) == alone
    assert grown(server, before, "compressed_requests", "resumed_requests") == [9, 6]
    assert alone[None] != alone["a"] != alone["b"] != alone[None]


@pytest.mark.server("lora")
def test_a_prompt_of_another_adapter_finds_nothing_cached(server: Server, language: Language) -> None:
    server.flush()
    ids, before = prompt(language, 6, 2500), server.stats()
    first = [say(server, ids, each, 0) for each in EVERY]
    assert all(cached <= 1 for _, cached in first)
    assert grown(server, before, "resumed_requests") == [0]
    again = [say(server, ids, each) for each in reversed(EVERY)][::-1]
    assert all(cached > 2000 for _, cached in again)
    assert grown(server, before, "resumed_requests") == [3]


@pytest.mark.server("lora")
def test_a_client_s_radix_key_cannot_be_an_adapter_s(server: Server, language: Language) -> None:
    server.flush()
    ids = prompt(language, 7, 1500)
    own, _ = say(server, ids, None)
    say(server, ids, "a", extra_key="x")
    name, path = lora_paths()[0].split("=")
    guessed = LoRARef.deterministic_id(name, path)
    for key in (guessed, f"x{guessed}"):
        server.flush()
        say(server, ids, "a", extra_key=key.removesuffix(guessed))
        assert say(server, ids, None, extra_key=key) == (own, 0)
        assert say(server, ids, None, extra_key=key)[1] > 1000, "its own key is one"


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(2500, marks=pytest.mark.server("lora")),
        pytest.param(2500, marks=[pytest.mark.server("drafts"), pytest.mark.slow]),
        pytest.param(1200, marks=pytest.mark.server("lora-profile")),
    ],
)
def test_at_once_each_adapter_answers_and_says_what_it_says_alone(
    server: Server, language: Language, length: int
) -> None:
    """By pivots they are retracted every few steps, and read what a turn before has left."""
    document = language.document(8, length, length // 50)
    right = Score(0, 0)
    for turn in range(2):
        question = language.ask(document, turn, 4)

        def answer(adapter: str | None, question: Any = question) -> Score:
            said, _ = say(server, document.ids + question.ids, adapter, question.max_answer_tokens)
            return score(language.decode(said), document, question.names)

        with ThreadPoolExecutor(6) as pool:
            right = sum(pool.map(answer, EVERY * 2), right)
    assert right.right == right.total == 48


@pytest.mark.server("lora-profile")
def test_an_adapter_s_profile_gives_its_requests_other_rows(server: Server, language: Language) -> None:
    told = server.get("/hetero/profile")
    assert list(told["adapters"]) == ["a"] and told["adapters"]["a"]["source"].endswith("/a.json")
    model, own = told["shares"], told["adapters"]["a"]["shares"]
    assert model != own and sum(map(sum, model)) == pytest.approx(sum(map(sum, own)), abs=1e-2)
    assert [[share == 1 for share in layer] for layer in model] == [[share == 1 for share in layer] for layer in own]


@pytest.mark.server("lora-whole")
def test_adapters_come_and_go_while_it_serves(server: Server, language: Language, tmp_path: Path) -> None:
    """One that comes again under the same name has nothing of what went."""
    ids, said = prompt(language, 9, 600), []
    for seed in (11, 12):
        write_adapter(tmp_path / "c", seed)
        load = {"lora_name": "c", "lora_path": str(tmp_path / "c")}
        assert server.post("/load_lora_adapter", load)["success"]
        tokens, cached = say(server, ids, "c")
        assert cached <= 1 and say(server, ids, "c")[0] == tokens
        said.append(tokens)
        far = {"lora_path": "c", "sampling_params": {"top_k": 1 << 40}}
        long, batch = {"lora_path": "c", "input_ids": ids * 999}, {**far, "input_ids": [ids, ids, ids]}
        for wrong in ({"lora_path": ["c"]}, far, batch, long):
            refused(server, "/generate", {"input_ids": ids, **wrong})  # which do not keep it from going
        several = {"temperature": 0, "max_new_tokens": 4, "n": 3}  # nor does that SGLang sends four for three
        samples = server.post("/generate", {"input_ids": ids, "lora_path": "c", "sampling_params": several})
        assert [each["output_ids"] for each in samples] == [tokens[:4]] * 3
        assert server.post("/unload_lora_adapter", {"lora_name": "c"})["success"]
    assert said[0] != said[1]


@pytest.mark.server("lora-whole")
def test_what_sglang_refuses_of_adapters_it_refuses_here(server: Server, language: Language, tmp_path: Path) -> None:
    large, other = (
        write_adapter(tmp_path / "large", 1, rank=64),
        write_adapter(tmp_path / "mlp", 1, targets=["down_proj"]),
    )
    for folder in (large, other, tmp_path):
        words = refused(server, "/load_lora_adapter", {"lora_name": "d", "lora_path": str(folder)})
        assert "d" in words
    ids = prompt(language, 10, 100)
    for wrong in (
        {"lora_path": "nobody"},
        {"lora_id": "x"},
        {"lora_id": ["x"]},
        {"lora_path": ["a"]},
        {"lora_path": 7},
    ):
        refused(server, "/generate", {"input_ids": ids, "sampling_params": {"max_new_tokens": 1}, **wrong})
    assert len(say(server, ids, "a")[0]) == 24


@pytest.mark.slow
@pytest.mark.parametrize("policy", ALIKE)
def test_every_policy_serves_adapters(policy: str, language: Language) -> None:
    ids, long = prompt(language, 11, 60), prompt(language, 12, 1500)
    with Server(kv_policy=policy, lora_paths=lora_paths(), hetero_keep_ratio=RATIO, **POLICY_ROOM) as server:
        told = [say(server, ids, each) for each in EVERY]
        assert all(cached <= 1 for _, cached in told) and len({json.dumps(said) for said, _ in told}) == 3
        alone = []
        for each in EVERY:
            server.flush()
            alone.append(say(server, long, each)[0])
        server.flush()
        assert [say(server, long, each)[0] for each in EVERY] == alone
        assert server.stats()["compressed_requests"] == 6
