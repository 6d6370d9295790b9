"""A stand-in for a policy's server: it reads the answer out of the prompt, counts, and errs where it is told to."""

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

PER_REQUEST = {
    "compressed_requests": 1,
    "kept_bytes": 300,
    "dense_bytes": 1000,
    "drift_triggers": 2,
    "fetched_rows": 50,
    "late_rows": 1,
    "anchor_refreshes": 3,
    "failed_rankings": 5,
}


@dataclass
class FakePolicyServer:
    """What the server says, and what it saw."""

    language: Language
    distort: Callable[[str], str] = lambda answer: answer
    complete: Callable[[str], str] = lambda text: ""  # answers to text prompts
    counts: bool = True  # else there is no /hetero/stats, as in plain SGLang
    info: dict[str, Any] = field(default_factory=dict)
    fail_after: int | None = None  # requests
    prompts: list[Any] = field(default_factory=list)
    flushes: int = 0
    most_at_once: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self.lock, self.looked = threading.Lock(), threading.Event()
        self.at_once = 0
        self.stats = {name: 7 for name in PER_REQUEST} | {"integrity": "ok"}

    def generate(self, request: dict[str, Any]) -> tuple[str, list[int]]:
        with self.lock:
            self.prompts.append(request.get("input_ids") or request["text"])
            if self.fail_after is not None and len(self.prompts) > self.fail_after:
                raise ConnectionAbortedError
            for name, step in PER_REQUEST.items():
                self.stats[name] += step
        if "text" in request:
            return self.complete(request["text"]), []
        said = self.distort(right_answer(self.language.decode(request["input_ids"])))
        ids = self.language.encode(said + "\n")
        return said, ids[: request["sampling_params"]["max_new_tokens"]]


def right_answer(text: str) -> str:
    """Of the last question, read from the text alone."""
    stated = dict(re.findall(r" Entry (\w+) (\d+ \w+)\.", text))  # a later statement replaces an earlier one
    asked = re.findall(r"\nQuestion:([^?]*)\?\nAnswer:", text)[-1].strip()
    if chain := re.fullmatch(r"(\w+) (\d+)", asked):
        name, pairs = chain[1], []
        for _ in range(int(chain[2])):
            number, following = stated[name].split()
            pairs.append(f"{name} {number}")
            name = following
        return " " + ", ".join(pairs)
    return " " + ", ".join(f"{name} {stated[name]}" for name in asked.split(", "))


@contextmanager
def serving(fake: FakePolicyServer) -> Iterator[FakePolicyServer]:
    """Serve on a free local port."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            if self.path == "/hetero/stats" and fake.counts:
                self.send_json([fake.stats])
                fake.looked.set()
            elif self.path == "/server_info":
                self.send_json(fake.info)
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            request = self.received()
            if self.path == "/flush_cache":
                fake.flushes += 1
                return self.send_json({})
            if self.path == "/v1/chat/completions":
                said, _ = fake.generate({"text": request["messages"][0]["content"]})
                usage = {"prompt_tokens": 3, "completion_tokens": 2}
                return self.send_json({"choices": [{"message": {"content": said}}], "usage": usage})
            with fake.lock:
                fake.at_once += 1
                fake.most_at_once = max(fake.most_at_once, fake.at_once)
            try:
                said, ids = fake.generate(request)
            except ConnectionAbortedError:
                return self.send_error(500)
            finally:
                with fake.lock:
                    fake.at_once -= 1
            prompt = len(request.get("input_ids", ()))
            if request.get("stream"):
                return self.stream(said, ids, prompt)
            self.send_json(reply(said, ids, prompt))

        def stream(self, said: str, ids: list[int], prompt: int) -> None:
            self.send_response(200)
            self.end_headers()
            fake.looked.clear()
            for at, end in enumerate([*range(1, len(ids), 3), len(ids)]):
                text = said if end == len(ids) else fake.language.decode(ids[:end])
                if at == 1:  # a client that looks in between sees the counters move
                    fake.looked.wait(PATIENCE_S)
                fake.stats["drift_triggers"] += 1
                self.wfile.write(b"data: " + json.dumps(reply(text, ids[:end], prompt)).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")

    with local_server(Handler) as fake.url:
        yield fake


def reply(text: str, ids: list[int], prompt: int) -> dict[str, Any]:
    meta = {"prompt_tokens": prompt, "cached_tokens": 0, "completion_tokens": len(ids), "e2e_latency": 0.5}
    return {"text": text, "output_ids": ids, "meta_info": meta}
