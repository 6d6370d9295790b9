"""A client for a running SGLang server: token ids in, greedy answer out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .response import open_response

SPARE_TOKENS = 4  # over an answer's length: room to see one run past its end


@dataclass(frozen=True)
class Reply:
    """A server's answer; `text` lacks the closing newline, `meta` is SGLang's meta_info."""

    text: str
    ids: list[int]
    meta: dict[str, Any]


def ask(base_url: str, ids: Sequence[int], max_new_tokens: int, timeout: float = 600.0) -> Reply:
    """Send `ids` to POST /generate and return the greedy answer up to the first newline.

    `timeout` is in seconds. Raises HeteroError if no server answers, or if it refuses the prompt.
    """
    payload = {
        "input_ids": list(ids),
        "sampling_params": {"temperature": 0, "max_new_tokens": max_new_tokens, "stop": ["\n"]},
    }
    with open_response(base_url, "/generate", payload, timeout, "the prompt") as response:
        body = json.load(response)
        return Reply(body["text"], list(body["output_ids"]), body["meta_info"])
