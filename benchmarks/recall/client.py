"""A client for a running SGLang server: token ids in, greedy answer out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from hetero_sglang.errors import HeteroError

# A proxy between a benchmark and its server would be measured with it.
_opener = build_opener(ProxyHandler({}))


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
    url = base_url.rstrip("/") + "/generate"
    try:
        request = Request(url, json.dumps(payload).encode(), {"Content-Type": "application/json"})
        with _opener.open(request, timeout=timeout) as response:
            body = json.load(response)
        return Reply(body["text"], list(body["output_ids"]), body["meta_info"])
    except HTTPError as error:
        said = error.read().decode(errors="replace")[:300]
        raise HeteroError(f"The server at {base_url} refused the prompt ({error.code}): {said}") from error
    except (URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise HeteroError(f"No answer from {base_url} ({reason}): start it or pass its URL.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise HeteroError(f"{url} is not SGLang's ({error!r}): pass an SGLang server's URL.") from error
