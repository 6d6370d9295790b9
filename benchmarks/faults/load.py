"""The requests that run while something fails, and the tokens they are answered with where nothing does."""

from __future__ import annotations

import json
import time
import urllib.error
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException

from benchmarks.launch import Server
from benchmarks.recall import Language

AT_ONCE = 6
DOCUMENTS = 2  # which they share
TOKENS, ENTRIES, NAMES = 1200, 30, 4
PATIENCE_S = 90.0  # for an answer, after which it counts as one that never comes
CUT_OFF = "the connection is closed"


@dataclass(frozen=True)
class Answer:
    """Its tokens, or why there are none; no reason at all: the request hung."""

    ids: tuple[int, ...] = ()
    reason: str = ""


class Load:
    """`expected`: the answers of a server that is left alone."""

    def __init__(self, language: Language) -> None:
        documents = [language.document(seed, TOKENS, ENTRIES) for seed in range(DOCUMENTS)]
        asked = [(each, language.ask(each, n, NAMES)) for n, each in enumerate(documents * (AT_ONCE // DOCUMENTS))]
        self._prompts = [document.ids + question.ids for document, question in asked]
        self._tokens = max(question.max_answer_tokens for _, question in asked) - 1  # all entries, and not how it ends
        self.expected: list[Answer] = []

    def learn(self, server: Server) -> None:
        """Ask a server that is left alone. RuntimeError where it fails or does not say the same twice."""
        first, again = (self.ask(server) for _ in range(2))
        if first != again or not all(answer.ids for answer in first):
            raise RuntimeError(f"the server that is left alone answers {first}, then {again}")
        self.expected = first

    def ask(self, server: Server, deed: Callable[[], None] | None = None) -> list[Answer]:
        """All at once, on an empty cache; `deed` is done while most of them are running."""
        server.flush()
        before = server.stats()["requests"]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            jobs: list[Future[Answer]] = [pool.submit(self._one, server, prompt) for prompt in self._prompts]
            if deed is not None:
                while server.stats()["requests"] < before + AT_ONCE // 2 and not all(job.done() for job in jobs):
                    time.sleep(0.02)
                deed()
            return [job.result() for job in jobs]

    def _one(self, server: Server, prompt: list[int]) -> Answer:
        body = {
            "input_ids": prompt,
            "sampling_params": {"temperature": 0, "max_new_tokens": self._tokens, "ignore_eos": True},
        }
        try:
            reply = server.post("/generate", body, timeout=PATIENCE_S)
            end = reply["meta_info"]["finish_reason"]
            return Answer(reason=end["message"]) if end["type"] == "abort" else Answer(tuple(reply["output_ids"]))
        except urllib.error.HTTPError as error:
            return Answer(reason=_said(error))
        except TimeoutError:
            return Answer()
        except (HTTPException, OSError) as error:  # URLError is one
            return Answer() if isinstance(getattr(error, "reason", None), TimeoutError) else Answer(reason=CUT_OFF)


def _said(error: urllib.error.HTTPError) -> str:
    """Why a request was refused or ended, by the server's own words."""
    body = error.read().decode(errors="replace")
    try:
        said = json.loads(body)
        said = said.get("error", said)
        return f"{error.code} {said['message']}"
    except (ValueError, KeyError, AttributeError):
        return f"{error.code} {body[:100]}"
