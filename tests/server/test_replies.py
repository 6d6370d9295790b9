"""`meta_info["hetero"]`: what became of a request's rows, in its reply and in no other server's."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from servers import Servers
from waiting import wait_for

from benchmarks.launch import Server
from benchmarks.recall import Language

FIELDS = {"kept_rows", "all_rows", "exact", "resumed", "appended_tokens", "fetched_rows", "late_rows", "refills"}
MANY = 64  # tokens of a stream: a busy machine sends several in a piece
HEADS = {"usual": 18, "indexed": 32}  # of recall-8m's 32 that are compressed


def body(ids: Any, new: int, **more: Any) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_new_tokens": new, "ignore_eos": True, **more.pop("sampling", {})}
    return {"input_ids": ids, "sampling_params": sampling, **more}


def streamed(server: Server, request: dict[str, Any]) -> list[dict[str, Any]]:
    data = json.dumps({**request, "stream": True}).encode()
    post = urllib.request.Request(server.url + "/generate", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(post, timeout=300) as reply:
        lines = [line.removeprefix(b"data: ").strip() for line in reply if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


@pytest.mark.server("usual")
def test_a_reply_says_how_many_rows_were_kept(server: Server, language: Language) -> None:
    ids = language.document(4, 3000, 30).ids

    def refilled() -> dict[str, Any] | None:
        """What a reply says once the worker was in time, which takes some attempts on a busy machine."""
        told = server.post("/generate", body(ids, 100))["meta_info"]["hetero"]
        return told if told["refills"] else None

    told = wait_for(refilled, "no reply has a refill")
    assert set(told) == FIELDS
    assert told["all_rows"] == (len(ids) + 100 - 1) * HEADS["usual"], "the last token has no row yet"
    assert 0.1 < told["kept_rows"] / told["all_rows"] < 0.7 and told["exact"] is False
    assert told["resumed"] is False and told["appended_tokens"] == 0 and told["refills"] > 0
    short = server.post("/generate", body(ids[:50], 4))["meta_info"]["hetero"]
    assert short["exact"] is True and short["kept_rows"] == short["all_rows"] == 53 * HEADS["usual"]
    assert short["refills"] == 0


@pytest.mark.server("usual")
def test_streams_say_it_at_their_end_and_samples_each(server: Server, language: Language) -> None:
    ids = language.document(4, 1500, 15).ids
    whole = server.post("/generate", body(ids, MANY))["meta_info"]["hetero"]
    chunks = streamed(server, body(ids, MANY))
    assert len(chunks) > 2 and [chunk["meta_info"].get("hetero") for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["meta_info"]["hetero"]["kept_rows"] == whole["kept_rows"]
    three = server.post("/generate", body(ids, MANY, sampling={"n": 3, "temperature": 1.0}))
    assert [each["meta_info"]["hetero"]["kept_rows"] for each in three] == [whole["kept_rows"]] * 3
    lengths = [700, 1500, 40]
    many = server.post("/generate", body([ids[:length] for length in lengths], 6))
    assert [each["meta_info"]["hetero"]["all_rows"] for each in many] == [(n + 5) * HEADS["usual"] for n in lengths]


@pytest.mark.server("usual")
def test_a_chat_by_openai_s_protocol_says_it_where_it_is_asked(server: Server) -> None:
    chat = {"model": "default", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 2}
    (choice,) = server.post("/v1/chat/completions", {**chat, "return_meta_info": True})["choices"]
    assert choice["meta_info"]["hetero"]["exact"] is True
    (choice,) = server.post("/v1/chat/completions", chat)["choices"]
    assert "meta_info" not in choice


@pytest.mark.server("indexed")
def test_a_turn_says_that_it_went_on_and_what_it_appended(server: Server, language: Language) -> None:
    server.flush()
    document = language.document(9, 1500, 15)
    first = server.post("/generate", body(document.ids, 8))
    assert first["meta_info"]["hetero"]["resumed"] is False
    ids = document.ids + first["output_ids"] + language.ask(document, 1, 3).ids
    reply = server.post("/generate", body(ids, 8))
    told = reply["meta_info"]["hetero"]
    assert told["resumed"] is True and told["exact"] is False
    assert told["appended_tokens"] == len(ids) - reply["meta_info"]["cached_tokens"] < 25
    assert told["all_rows"] == (len(ids) + 7) * HEADS["indexed"]
    chunks = streamed(server, body(ids, 8))
    assert chunks[-1]["meta_info"]["hetero"]["kept_rows"] > 0


@pytest.mark.server("two-ranks")
def test_rows_are_those_of_all_ranks(server: Server, language: Language) -> None:
    told = server.post("/generate", body(language.document(4, 1200, 12).ids, 8))["meta_info"]
    assert told["hetero"]["all_rows"] == (told["prompt_tokens"] + 7) * HEADS["indexed"]


@pytest.mark.server("plain")
def test_plain_sglang_says_and_serves_nothing_of_it(server: Server, servers: Servers, language: Language) -> None:
    assert "hetero" not in server.post("/generate", body([5] * 40, 4))["meta_info"]
    for path in ("/hetero/stats", "/hetero/profile", "/hetero/config"):
        with pytest.raises(urllib.error.HTTPError) as error:
            server.get(path)
        assert error.value.code == 404
