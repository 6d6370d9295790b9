"""A stand-in for an SGLang server that knows every answer, and errs only where it is told to."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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
            self.gathering.wait(timeout=20)
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

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(fake.reply(request)).encode() if fake.body is None else fake.body
            self.send_response(fake.status if self.path == "/generate" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
