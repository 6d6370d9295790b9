"""What users say stays between them and the model: it is in no log, metric or statistic, whatever becomes of it."""

from __future__ import annotations

import json
import urllib.error
from typing import Any

import pytest

from benchmarks.launch import Server

WORD = "xylophonequartz"  # no word of the model's language
IDS = [2801, 2807, 2809, 2813, 2817]  # nor these in a row


def refused(server: Server, path: str, body: Any) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        server.post(path, body)
    assert error.value.code == 400


@pytest.mark.server("usual")
def test_nothing_of_a_prompt_is_kept_where_others_look(server: Server) -> None:
    server.post("/generate", {"text": f"The {WORD} is", "sampling_params": {"max_new_tokens": 4}})
    server.generate(IDS, 4)
    chat = {"model": "x", "messages": [{"role": "user", "content": WORD}], "max_tokens": 4}
    server.post("/v1/chat/completions", chat)
    # and of those that are refused, for each kind of reason
    refused(server, "/generate", {"input_ids": [*IDS, 1 << 40]})
    refused(server, "/generate", {"text": {"a": WORD}, "sampling_params": {"max_new_tokens": 4}})
    refused(server, "/generate", {"text": "The", "sampling_params": {"json_schema": "[" * 200 + WORD}})
    refused(server, "/generate", {"text": "The", "sampling_params": [WORD]})
    seen = {
        "log": server.log.read_text(errors="replace"),
        **{
            path: json.dumps(server.get(path))
            for path in ("/metrics", "/hetero/stats", "/hetero/profile", "/server_info")
        },
    }
    said = ", ".join(map(str, IDS[:3]))
    assert not [name for name, text in seen.items() if WORD in text or said in text]
