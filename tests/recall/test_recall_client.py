"""The client sends ids, asks for greedy text up to a newline, and says plainly what went wrong."""

from __future__ import annotations

import socket

import pytest
from fake_recall_server import FakeServer, serving

from benchmarks.recall import Language, ask
from hetero_sglang.errors import HeteroError


def test_a_reply_carries_text_ids_and_meta_of_a_greedy_answer(language: Language) -> None:
    document = language.document(1, 200, 10)
    question = language.ask(document, 1, 4)
    prompt = document.ids + question.ids
    with serving(FakeServer(language)) as fake:
        reply = ask(fake.url + "/", prompt, question.max_answer_tokens)
    assert reply.text + "\n" == language.answer(document, question.names)
    assert reply.ids == language.answer_ids(document, question.names)
    assert reply.meta["prompt_tokens"] == len(prompt)
    assert fake.requests == [
        {
            "input_ids": prompt,
            "sampling_params": {"temperature": 0, "max_new_tokens": 16, "stop": ["\n"]},
        }
    ]


def test_a_proxy_setting_does_not_stand_between_client_and_server(
    language: Language, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    document = language.document(1, 200, 10)
    with serving(FakeServer(language)) as fake:
        assert ask(fake.url, document.ids + language.ask(document, 1, 1).ids, 8).text


def test_a_refusal_is_passed_on(language: Language) -> None:
    refusing = FakeServer(language, status=400, body=b'{"error": "prompt too long"}')
    with serving(refusing) as fake, pytest.raises(HeteroError, match="400.*prompt too long"):
        ask(fake.url, [0, 1], 4)


@pytest.mark.parametrize("body", [b"hello", b"{}", b"[]", b'{"text": "", "output_ids": null}'])
def test_an_answer_that_is_not_sglangs_is_refused(language: Language, body: bytes) -> None:
    with serving(FakeServer(language, body=body)) as fake, pytest.raises(HeteroError, match="not SGLang"):
        ask(fake.url, [0, 1], 4)


def test_no_server_is_said_plainly() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(HeteroError, match="start it or pass its URL"):
            ask(url, [0, 1], 4)
    with pytest.raises(HeteroError, match="URL"):
        ask("127.0.0.1", [0, 1], 4)
