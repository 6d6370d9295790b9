"""A stand-in for an SGLang server that knows every answer, and errs only where it is told to."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from local_http import QuietHandler, local_server
from waiting import PATIENCE_S

from benchmarks.recall import Language

Distort = Callable[[str, int], str]  # right answer, turn from 0 -> what to say


@dataclass
class FakeServer:
    """What the server does, and what it saw."""

    language: Language
    distort: Distort = lambda answer, turn: answer
    status: int = 200
    body: bytes | None = None  # sent in place of an answer
    gathering: threading.Barrier | None = None  # each request waits for its fellows here
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        prompt = request["input_ids"]
        text = self.language.decode(prompt)
        cached = max((shared(prompt, earlier["input_ids"]) for earlier in self.requests), default=0)
        self.requests.append(request)
        if self.gathering:
            self.gathering.wait(timeout=PATIENCE_S)
        entries = dict(re.findall(r" Entry (\w+) (\d+ \d+)\.", text))
        questions = re.findall(r"\nQuestion:([^?]*)\?\nAnswer:", text)
        names = [name.strip() for name in questions[-1].split(",")]
        answer = " " + ", ".join(f"{name} {entries[name]}" for name in names)
        said = self.distort(answer, len(questions) - 1)
        ids = self.language.encode(said + "\n")[: request["sampling_params"]["max_new_tokens"]]
        meta = {"prompt_tokens": len(prompt), "cached_tokens": cached, "completion_tokens": len(ids)}
        return {"text": said, "output_ids": ids, "meta_info": meta}


def shared(one: list[int], two: list[int]) -> int:
    """Length of the common prefix."""
    same = 0
    for a, b in zip(one, two, strict=False):
        if a != b:
            break
        same += 1
    return same


@contextmanager
def serving(fake: FakeServer) -> Iterator[FakeServer]:
    """Serve on a free local port."""

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            request = self.received()
            body = json.dumps(fake.reply(request)).encode() if fake.body is None else fake.body
            self.send(body, fake.status if self.path == "/generate" else 404)

    with local_server(Handler) as fake.url:
        yield fake
