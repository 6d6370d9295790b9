"""Clients that know nothing of the policy: SGLang's own load generator, and OpenAI's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from benchmarks.launch import Server
from benchmarks.recall import SPARE_TOKENS, Document, Language, Question, Score, Session, score

pytestmark = pytest.mark.server("indexed")

LENGTH = 1200  # of a document: long enough to be compressed
SHORT = pytest.mark.parametrize("document", [300], indirect=True, ids=["short"])  # kept whole
PROMPTS, OUTPUT = 4, 12
SHARED = [
    "--dataset-name", "generated-shared-prefix", "--gsp-num-groups", "2", "--gsp-prompts-per-group", str(PROMPTS // 2),
    "--gsp-system-prompt-len", str(LENGTH), "--gsp-question-len", "40", "--gsp-output-len", str(OUTPUT),
]  # fmt: skip
RANDOM = [
    "--dataset-name", "random-ids", "--num-prompts", str(PROMPTS), "--random-input-len", str(LENGTH),
    "--random-output-len", str(OUTPUT), "--random-range-ratio", "1",
]  # fmt: skip


def bench_serving(server: Server, folder: Path, backend: str, flags: list[str]) -> dict[str, Any]:
    """What `python -m sglang.bench_serving` writes about its run."""
    command = [sys.executable, "-m", "sglang.bench_serving", "--backend", backend, "--base-url", server.url, *flags]
    command += ["--max-concurrency", "2", "--output-details", "--disable-tqdm"]
    if backend != "sglang-oai":  # its report of completions takes the last chunk, which has usage alone, for an answer
        command += ["--cache-report"]
    command += ["--output-file", str(folder / "run.jsonl")]
    env = {**os.environ, "HOME": str(folder)}  # where it would keep, and look for, prompts made before
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads((folder / "run.jsonl").read_text())


@pytest.mark.parametrize(
    ("backend", "flags"),
    [
        pytest.param("sglang", SHARED, id="shared"),
        pytest.param("sglang", RANDOM, id="random", marks=pytest.mark.slow),
        pytest.param("sglang-oai", RANDOM, id="random-completions", marks=pytest.mark.slow),
        pytest.param("sglang-oai-chat", SHARED, id="shared-chat", marks=pytest.mark.slow),
        pytest.param("sglang-oai-chat", [*SHARED, "--gsp-num-turns", "3"], id="turns", marks=pytest.mark.slow),
    ],
)
def test_bench_serving_gets_every_answer(server: Server, tmp_path: Path, backend: str, flags: list[str]) -> None:
    before = server.stats()["compressed_requests"]
    run = bench_serving(server, tmp_path, backend, flags)
    requests = PROMPTS * (3 if "--gsp-num-turns" in flags else 1)
    assert run["completed"] == requests and not any(run["errors"]), run["errors"]
    assert run["total_output_tokens"] == requests * OUTPUT
    assert server.stats()["compressed_requests"] - before >= PROMPTS
    if flags[1] == SHARED[1]:  # two at a time, of two groups: half of them find their group's prefix at least
        assert run["cache_report"]["total_cached_tokens"] > 0.4 * run["cache_report"]["total_prompt_tokens"]


@pytest.fixture
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def document(language: Language, request: pytest.FixtureRequest) -> Document:
    return language.document(31, getattr(request, "param", LENGTH), 10)


def chat(client: OpenAI, session: Session, question: Question, **more: Any) -> ChatCompletion:
    asked = {"temperature": 0, "max_tokens": question.max_answer_tokens + SPARE_TOKENS, "stop": ["\n"], **more}
    return client.chat.completions.create(model="default", messages=session.messages(question), **asked)


def test_a_chat_goes_on_for_turns(server: Server, client: OpenAI, language: Language, document: Document) -> None:
    session, right = Session(document), Score(0, 0)
    before = server.stats()["compressed_requests"]
    for turn in range(3):
        question = language.ask(document, turn, 4)
        reply = chat(client, session, question)
        text = reply.choices[0].message.content or ""
        assert reply.choices[0].finish_reason == "stop" and reply.usage is not None
        assert reply.usage.prompt_tokens == len(session.prompt_ids(question))
        right += score(text, document, question.names)
        session.add(question, text, language.encode(text))
    assert right.right >= 11 and right.total == 12
    assert server.stats()["compressed_requests"] - before == 3


@SHORT
def test_a_stream_says_what_the_whole_answer_does(client: OpenAI, language: Language, document: Document) -> None:
    question, session = language.ask(document, 5, 8), Session(document)  # a busy machine's pieces have several tokens
    whole = chat(client, session, question)
    chunks = list(chat(client, session, question, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 4 and "".join(pieces) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage


def test_completions_take_text_ids_and_many_prompts(client: OpenAI, language: Language, document: Document) -> None:
    questions = [language.ask(document, seed, 2) for seed in range(2)]
    ids = [document.ids + question.ids for question in questions]
    texts = ["<s>" + document.text + question.text for question in questions]
    asked: dict[str, Any] = {"model": "default", "temperature": 0, "max_tokens": 12, "stop": "\n"}
    for prompt in (ids, texts):
        choices = client.completions.create(prompt=prompt, n=2, **asked).choices
        assert [choice.index for choice in choices] == [0, 1, 2, 3]
        for choice in choices:  # two of each prompt
            question = questions[choice.index // 2]
            assert score(choice.text, document, question.names).right == 2, choice
    streamed = client.completions.create(prompt=texts[0], stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in streamed) == choices[0].text
    assert client.completions.create(prompt=texts[0], echo=True, **asked).choices[0].text == texts[0] + choices[0].text


@SHORT
def test_several_choices_are_of_their_own(client: OpenAI, language: Language, document: Document) -> None:
    question, session = language.ask(document, 7, 2), Session(document)
    for choice in chat(client, session, question, n=2).choices:
        assert score(choice.message.content or "", document, question.names).right == 2, choice
    hot = chat(client, session, question, n=4, temperature=3.0, max_tokens=6, stop=None).choices
    assert len({choice.message.content for choice in hot}) > 1


@SHORT
def test_an_answer_ends_where_it_is_told_to(client: OpenAI, language: Language, document: Document) -> None:
    question, session = language.ask(document, 8, 2), Session(document)
    (whole,) = chat(client, session, question).choices
    assert whole.message.content is not None
    (first,) = chat(client, session, question, stop=[",", "\n"]).choices
    assert (first.message.content, first.finish_reason) == (whole.message.content.split(",")[0], "stop")
    (short,) = chat(client, session, question, max_tokens=3).choices
    assert (short.message.content, short.finish_reason) == (first.message.content, "length")
    comma = language.token[","]
    (token,) = chat(client, session, question, stop=None, extra_body={"stop_token_ids": [comma]}).choices
    assert (token.message.content, token.finish_reason) == (first.message.content, "stop")


@SHORT
def test_log_probabilities_are_those_of_the_answer(client: OpenAI, language: Language, document: Document) -> None:
    question, session = language.ask(document, 9, 2), Session(document)
    (choice,) = chat(client, session, question, logprobs=True, top_logprobs=3).choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens).strip("\n") == choice.message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(other.logprob for other in token.top_logprobs) > -1  # it knows what it says
    prompt = "<s>" + document.text + question.text
    told = client.completions.create(
        model="default", prompt=prompt, temperature=0, max_tokens=12, stop="\n", logprobs=2
    ).choices[0]
    assert told.logprobs is not None and told.logprobs.token_logprobs is not None
    assert told.logprobs.token_logprobs == pytest.approx([token.logprob for token in tokens], abs=0.1)


def tool(names: list[str]) -> dict[str, Any]:
    """A look-up of one of the names, as OpenAI's protocol describes a function."""
    parameters = {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": names}, "deep": {"type": "boolean"}},
        "required": ["name", "deep"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": "look_up", "strict": True, "parameters": parameters}}


def brief(language: Language) -> dict[str, int]:
    """A bias against blanks, which JSON allows anywhere and of which the model would write nothing else, and towards
    the end, wherever it is allowed."""
    tokens = range(language.tokenizer.get_vocab_size())
    blanks = {str(token): -100 for token in tokens if language.decode([token]).isspace()}
    return {**blanks, str(language.tokenizer.token_to_id("</s>")): 30}


@SHORT
@pytest.mark.parametrize(
    "choice",
    [
        "required",
        pytest.param({"type": "function", "function": {"name": "look_up"}}, id="named", marks=pytest.mark.slow),
    ],
)
def test_a_tool_is_called_as_its_schema_says(
    client: OpenAI, language: Language, document: Document, choice: Any
) -> None:
    question, session = language.ask(document, 10, 1), Session(document)
    names = list(document.entries)[:4]
    asked = {"tools": [tool(names)], "tool_choice": choice, "parallel_tool_calls": False, "stop": None}
    asked |= {"max_tokens": 100, "logit_bias": brief(language)}
    (made,) = chat(client, session, question, **asked).choices
    assert made.finish_reason == "tool_calls" and made.message.tool_calls, made
    (call,) = made.message.tool_calls
    assert call.function.name == "look_up"
    arguments = json.loads(call.function.arguments)
    assert arguments.keys() == {"name", "deep"} and arguments["name"] in names and arguments["deep"] in (True, False)
    chunks = [each for each in chat(client, session, question, stream=True, **asked) if each.choices]
    parts = [part for each in chunks for part in each.choices[0].delta.tool_calls or []]
    assert "".join(part.function.name or "" for part in parts) == "look_up"
    assert json.loads("".join(part.function.arguments or "" for part in parts)) == arguments


@SHORT
def test_an_answer_is_json_of_a_schema(client: OpenAI, language: Language, document: Document) -> None:
    question, session = language.ask(document, 11, 1), Session(document)
    names = list(document.entries)[:4]
    schema = {
        "type": "object",
        "properties": {"name": {"enum": names}, "found": {"type": "boolean"}, "numbers": {"enum": [[1, 2], [3, 4]]}},
        "required": ["name", "found", "numbers"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "entry", "schema": schema, "strict": True}}
    asked = {"response_format": wanted, "max_tokens": 80, "stop": None, "logit_bias": brief(language)}
    for heat in (0, 1):
        (choice,) = chat(client, session, question, temperature=heat, **asked).choices
        assert choice.finish_reason == "stop", choice
        answer = json.loads(choice.message.content or "")
        assert answer.keys() == {"name", "found", "numbers"}
        assert answer["name"] in names and answer["found"] in (True, False) and answer["numbers"] in ([1, 2], [3, 4])
