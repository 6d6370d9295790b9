"""Requests that cannot be served get a 400 with the numbers, and the server goes on."""

from __future__ import annotations

import json
import urllib.error

import pytest

from benchmarks.launch import Server
from benchmarks.recall import Language

pytestmark = pytest.mark.server


def refusal(server: Server, ids: list[int], max_new: int) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as error:
        server.generate(ids, max_new)
    return error.value.code, json.dumps(json.loads(error.value.read()))


def test_an_over_long_prompt_gets_sglangs_own_400(server: Server, language: Language) -> None:
    code, text = refusal(server, [5] * 70000, 4)
    assert code == 400 and "70000" in text


def test_a_request_that_could_never_fit_gets_a_400_with_the_numbers(small_server: Server, language: Language) -> None:
    before = small_server.stats()
    document = language.document(2, 500, 8)
    code, text = refusal(small_server, document.ids[:480], 5000)
    assert code == 400 and "hot pages" in text and "480 prompt tokens" in text and str(before["hot_pages"]) in text
    assert small_server.stats()["refused_requests"] == before["refused_requests"] + 1
    assert len(small_server.generate(document.ids[:480], 5)["output_ids"]) == 5
