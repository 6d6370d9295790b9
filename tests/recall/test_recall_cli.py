"""The command line shows a document, a question and the right answer, and a server's score."""

from __future__ import annotations

import re

import pytest
from fake_recall_server import FakeServer, serving

from benchmarks.recall import Language
from benchmarks.recall.__main__ import main


def test_it_prints_a_document_with_a_question_and_its_answer(
    language: Language, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--tokens", "500", "--seed", "3", "--entries", "12", "--names", "5"]) == 0
    shown = capsys.readouterr().out
    document = language.document(3, 500, 12)
    question = language.ask(document, 3, 5)
    assert shown == document.text + question.text + language.answer(document, question.names)


def test_with_a_server_it_prints_what_the_server_answers(
    language: Language, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose_one(answer: str, turn: int) -> str:
        return answer.rpartition(",")[0]

    with serving(FakeServer(language, distort=lose_one)) as fake:
        assert main(["--tokens", "500", "--url", fake.url]) == 0
    assert re.search(r"\nServer: \w+ \d+ \d+,.*\nRight: 7/8\n$", capsys.readouterr().out)


def test_impossible_numbers_end_with_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tokens", "20"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", said.err)
