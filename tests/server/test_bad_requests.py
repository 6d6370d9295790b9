"""Requests that cannot be served get a 400 with the numbers, and the server goes on."""

from __future__ import annotations

import json
import urllib.error

import pytest

from benchmarks.launch import Server
from benchmarks.recall import Language

pytestmark = pytest.mark.server("short-whole")


def refusal(server: Server, ids: list[int], max_new: int) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as error:
        server.generate(ids, max_new)
    return error.value.code, json.dumps(json.loads(error.value.read()))


def test_an_over_long_prompt_gets_sglangs_own_400(server: Server) -> None:
    code, text = refusal(server, [5] * 70000, 4)
    assert code == 400 and "70000" in text


def test_a_request_that_could_never_fit_gets_a_400_with_the_numbers(server: Server, language: Language) -> None:
    before = server.stats()["refused_requests"]
    document = language.document(2, 8000, 20)
    assert "cannot hold a request of 8199 tokens" in server.log.read_text(errors="replace")
    code, text = refusal(server, document.ids, 5)
    pages = server.stats()["hot_pages"]
    assert code == 400 and f"({pages} pages)" in text and "8000 prompt tokens" in text
    assert server.stats()["refused_requests"] == before + 1
    assert len(server.generate(document.ids[:480], 5)["output_ids"]) == 5
