"""A request is refused where plain SGLang refuses it, with the numbers, and nowhere else."""

from __future__ import annotations

import json
import urllib.error

import pytest
from test_conservation import settled

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


def test_a_prompt_whose_whole_rows_do_not_fit_the_pool_is_compressed_not_refused(
    server: Server, language: Language
) -> None:
    """--hetero-dense-below would keep 8,000 tokens whole; the hot pool has no room for that."""
    before = settled(server)
    document = language.document(2, 8000, 20)
    question = language.ask(document, 0, 1)
    reply = server.generate(document.ids + question.ids, question.max_answer_tokens)
    after = settled(server)
    assert len(reply["output_ids"]) and reply["meta_info"]["prompt_tokens"] > 8000
    assert after["compressed_requests"] == before["compressed_requests"] + 1
    server.generate(document.ids[:480], 5)
    assert settled(server)["compressed_requests"] == after["compressed_requests"]
