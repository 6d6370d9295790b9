"""SGLang's frontend language: whole programs get right what they ask of compressed documents, and its parts work."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import sglang as sgl
from servers import Servers
from sglang.lang.chat_template import ChatTemplate, chat_template_registry

from benchmarks.launch import Server
from benchmarks.programs import agent, multi_document, tree_of_thought
from benchmarks.programs.wording import BEGIN, NUMBERS, ask
from benchmarks.recall import Document, Language, Session, score

pytestmark = pytest.mark.server("indexed")

LENGTH = 1200  # of a document: long enough to be compressed
SHORT = pytest.mark.parametrize("document", [300], indirect=True, ids=["short"])  # kept whole
PROGRAMS = pytest.mark.parametrize(
    "program", [multi_document, tree_of_thought, agent], ids=lambda program: program.__name__.split(".")[-1]
)


@pytest.fixture
def backend(server: Server) -> sgl.RuntimeEndpoint:
    return sgl.RuntimeEndpoint(server.url)


@pytest.fixture
def document(language: Language, request: pytest.FixtureRequest) -> Document:
    return language.document(41, getattr(request, "param", LENGTH), 10)


@PROGRAMS
def test_a_program_is_right_and_finds_its_prefixes_cached(
    server: Server, backend: sgl.RuntimeEndpoint, language: Language, program: Any
) -> None:
    before = server.stats()["compressed_requests"]
    outcome = program.run(backend, language, LENGTH)
    assert outcome.right >= 0.9 * outcome.total, str(outcome)
    assert outcome.cached_tokens > 0.8 * outcome.prompt_tokens
    assert server.stats()["compressed_requests"] - before >= 10


@pytest.mark.slow
@pytest.mark.server("short-whole", "plain")
@pytest.mark.parametrize("seed", range(3))
@PROGRAMS
def test_a_program_is_as_right_as_on_plain_sglang(
    server: Server, servers: Servers, language: Language, program: Any, seed: int
) -> None:
    ours, plain = (
        program.run(sgl.RuntimeEndpoint(each.url), language, LENGTH, seed) for each in (server, servers.get("plain"))
    )
    assert ours.right >= plain.right, f"{ours}\n{plain}"


@SHORT
def test_the_right_choice_is_selected(backend: sgl.RuntimeEndpoint, language: Language, document: Document) -> None:
    """By the frontend's first method: in SGLang 0.5.17 the others trip over a prompt's first log probability, which is
    None there."""
    name, *others = language.ask(document, 1, 4).names
    choices = [" " + " ".join(document.entries[each]) for each in (*others, name)]

    @sgl.function
    def choose(s: Any, last: Any) -> None:
        s += BEGIN + document.text + ask(language, name) + f" {name}" + last

    for last in (sgl.select("best", choices), sgl.gen("best", choices=choices)):
        state = choose.run(last, backend=backend)
        assert state["best"] == choices[-1] and state.text().endswith(choices[-1])
        scores = state.get_meta_info("best")["normalized_prompt_logprobs"]
        assert scores[-1] > -0.5 > -2 > max(scores[:-1])


@SHORT
def test_what_is_generated_obeys_its_expression(
    backend: sgl.RuntimeEndpoint, language: Language, document: Document
) -> None:
    (name,) = language.ask(document, 2, 1).names
    schema = json.dumps({"enum": list(document.entries)[:3]})

    @sgl.function
    def constrained(s: Any) -> None:
        s += BEGIN + document.text
        forks = s.fork(3)
        forks += [
            ask(language, name) + f" {name}" + sgl.gen("numbers", regex=NUMBERS, max_tokens=8, temperature=0),
            ask(language, name) + sgl.gen("count", dtype=int, max_tokens=6, temperature=1),
            ask(language, name) + sgl.gen("json", json_schema=schema, max_tokens=12, temperature=1),
        ]
        s["said"] = forks[0]["numbers"], forks[1]["count"], forks[2]["json"]

    numbers, count, text = constrained.run(backend=backend)["said"]
    assert numbers == " " + " ".join(document.entries[name])
    assert re.fullmatch(r"[-+]?\d+", count)
    assert json.loads(text) in list(document.entries)[:3]


@pytest.fixture
def joined_as_text() -> Iterator[None]:
    """The frontend would ask for a route that SGLang 0.5.17's server does not have."""
    sgl.global_config.enable_parallel_encoding = False
    yield
    sgl.global_config.enable_parallel_encoding = True


@SHORT
def test_forks_of_nothing_join(
    backend: sgl.RuntimeEndpoint, language: Language, document: Document, joined_as_text: None
) -> None:
    """Of a state without any text: by variables, and by text."""
    names = language.ask(document, 3, 2).names

    @sgl.function
    def parted(s: Any, mode: str) -> None:
        forks = s.fork(len(names))
        forks += lambda at: BEGIN + document.text + ask(language, names[at])
        forks += sgl.gen("answer", max_tokens=4, stop="\n", temperature=0)
        forks.join(mode)

    state = parted.run("gather_variable", backend=backend)
    assert state.text() == "" and len(state["answer"]) == len(names)
    for name, answer in zip(names, state["answer"], strict=True):
        assert score(answer, document, [name]).right == 1
    together = parted.run("concate_and_append", backend=backend)
    assert together.text() == "".join(
        BEGIN + document.text + ask(language, name) + answer
        for name, answer in zip(names, state["answer"], strict=True)
    )


def test_a_batch_shares_its_programs_beginning(
    backend: sgl.RuntimeEndpoint, language: Language, document: Document
) -> None:
    @sgl.function
    def looked_up(s: Any, question: str) -> None:
        s += BEGIN + document.text
        s += question
        s += sgl.gen("answer", max_tokens=8, stop="\n")

    questions = [language.ask(document, seed, 1) for seed in range(4)]
    batch = [{"question": question.text} for question in questions]
    for more in ({}, {"generator_style": True, "num_threads": 1}):
        states = list(looked_up.run_batch(batch, backend=backend, temperature=0, **more))
        for question, state in zip(questions, states, strict=True):
            assert score(state["answer"], document, question.names).right == 1
            assert state.get_meta_info("answer")["cached_tokens"] > 0.9 * LENGTH  # of the first, too


@SHORT
def test_a_stream_is_the_whole_text_in_pieces(
    backend: sgl.RuntimeEndpoint, language: Language, document: Document
) -> None:
    question = language.ask(document, 4, 8)  # a busy machine sends several tokens in a piece

    @sgl.function
    def told(s: Any) -> None:
        s += BEGIN + document.text + question.text
        s += sgl.gen("answer", max_tokens=question.max_answer_tokens, stop="\n")
        s += "\nQuestion: over"

    async def gathered(state: Any) -> list[str]:
        return [piece async for piece in state.text_async_iter("answer")]

    whole = told.run(backend=backend, temperature=0)
    assert score(whole["answer"], document, question.names).right == 8
    text = "".join(told.run(backend=backend, temperature=0, stream=True).text_iter())
    pieces = list(told.run(backend=backend, temperature=0, stream=True).text_iter("answer"))
    later = asyncio.run(gathered(told.run(backend=backend, temperature=0, stream=True)))
    assert text == whole.text() and len(pieces) > 2 and len(later) > 2
    assert "".join(pieces) == "".join(later) == whole["answer"]


def test_roles_make_the_prompt_of_the_models_own_template(
    server: Server, language: Language, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"system": (BEGIN, ""), "user": ("\nQuestion:", "?\nAnswer:"), "assistant": ("", "\n")}
    monkeypatch.setitem(chat_template_registry, "recall", ChatTemplate("recall", None, parts))
    session, questions = Session(document), [language.ask(document, seed, 3) for seed in range(3)]

    @sgl.function
    def converse(s: Any) -> None:
        s += sgl.system(document.text)
        for turn, question in enumerate(questions):
            s += sgl.user(" " + question.asked)
            s += sgl.assistant(sgl.gen(f"answer{turn}", max_tokens=20, stop="\n"))

    state = converse.run(backend=sgl.RuntimeEndpoint(server.url, chat_template_name="recall"), temperature=0)
    for turn, question in enumerate(questions):
        prompt = session.prompt_ids(question)
        assert state.get_meta_info(f"answer{turn}")["prompt_tokens"] == len(prompt)
        assert score(state[f"answer{turn}"], document, question.names).right == 3
        session.add(question, state[f"answer{turn}"], language.encode(state[f"answer{turn}"]))
    assert [message["role"] for message in state.messages()] == ["system", *["user", "assistant"] * 3]
