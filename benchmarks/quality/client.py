"""A client for everything the benchmark asks of a running server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from urllib.error import HTTPError

from benchmarks.recall import Reply
from benchmarks.recall import ask as ask_recall
from benchmarks.recall.response import open_response
from hetero_sglang.errors import HeteroError

_FLUSH_TRIES, _FLUSH_PAUSE = 1200, 0.1  # the server refuses while its last request winds down: long, if it is busy


class Client:
    """One server; every method raises HeteroError if it does not answer as SGLang does."""

    def __init__(self, url: str, timeout: float = 1800.0) -> None:
        """`timeout` is in seconds, for one answer."""
        self.url = url.rstrip("/")
        self.timeout = timeout

    def ask(self, ids: Sequence[int], max_new_tokens: int) -> Reply:
        """Greedy answer to token ids, up to the first newline."""
        return ask_recall(self.url, ids, max_new_tokens, self.timeout)

    def stream(self, ids: Sequence[int], max_new_tokens: int) -> Iterator[Reply]:
        """The same answer as it grows; the last one is whole."""
        sampling = {"temperature": 0, "max_new_tokens": max_new_tokens, "stop": ["\n"]}
        body = {"input_ids": list(ids), "sampling_params": sampling, "stream": True}
        with self._open("/generate", body) as lines:
            for line in lines:
                if line.startswith(b"data:") and b"[DONE]" not in line:
                    chunk = json.loads(line[5:])
                    if "error" in chunk:
                        raise HeteroError(f"The server at {self.url} gave up on a prompt: {chunk['error']}")
                    yield Reply(chunk["text"], list(chunk["output_ids"]), chunk["meta_info"])

    def continued(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """Greedy continuation of token ids."""
        sampling = {"temperature": 0, "max_new_tokens": max_new_tokens}
        with self._open("/generate", {"input_ids": list(ids), "sampling_params": sampling}) as response:
            return json.load(response)["output_ids"]

    def complete(self, text: str, max_new_tokens: int, chat: bool = False) -> tuple[str, dict[str, Any]]:
        """Greedy answer to a text, or to it as a chat message, and the tokens of both."""
        if chat:
            messages = [{"role": "user", "content": text}]
            body = {"model": "default", "messages": messages, "temperature": 0, "max_tokens": max_new_tokens}
            with self._open("/v1/chat/completions", body) as response:
                reply = json.load(response)
                usage = {name: reply["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
                return reply["choices"][0]["message"]["content"] or "", usage
        sampling = {"temperature": 0, "max_new_tokens": max_new_tokens}
        with self._open("/generate", {"text": text, "sampling_params": sampling}) as response:
            reply = json.load(response)
            return reply["text"], {name: reply["meta_info"][name] for name in ("prompt_tokens", "completion_tokens")}

    def stats(self) -> dict[str, Any] | None:
        """The first rank's counters; None from a server without the policy."""
        ranks = self._get("/hetero/stats")
        return ranks[0] if ranks else None

    def info(self) -> dict[str, Any]:
        """The server's settings; empty if it does not tell."""
        return self._get("/server_info") or {}

    def flush(self) -> None:
        """Empty the prefix cache, so that a sample does not depend on those before it."""
        for tries in range(_FLUSH_TRIES, 0, -1):
            try:
                with self._open("/flush_cache", {}):
                    return
            except HeteroError as error:
                if tries == 1 or not isinstance(error.__cause__, HTTPError):
                    raise
                time.sleep(_FLUSH_PAUSE)

    def _get(self, path: str) -> Any:
        try:
            with self._open(path) as response:
                return json.load(response)
        except HeteroError as error:
            if isinstance(error.__cause__, HTTPError) and error.__cause__.code == 404:
                return None
            raise

    def _open(self, path: str, body: dict[str, Any] | None = None) -> AbstractContextManager[Any]:
        return open_response(self.url, path, body, self.timeout)
