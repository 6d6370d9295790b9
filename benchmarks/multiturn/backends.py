"""Servers that answer: SGLang's own protocol by token ids, or OpenAI's chat completions by words."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from hetero_sglang.errors import HeteroError


@dataclass
class Answer:
    """Tokens as they came: how many had, at which time (seconds of `time.perf_counter`)."""

    asked: float
    times: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # output tokens by then
    ids: list[int] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int | None = None  # None: the server does not say

    def came(self, count: int) -> None:
        """`count` output tokens are there by now."""
        if count > (self.counts[-1] if self.counts else 0):
            self.times.append(time.perf_counter())
            self.counts.append(count)


class Backend(ABC):
    """One server. A conversation is a list, whose kind of item is the backend's own."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str) -> None:
        self.session, self.url, self.model = session, url.rstrip("/"), model

    @abstractmethod
    def said(self, history: list[Any], ids: list[int], answer: Answer | None = None) -> None:
        """Add a user's message, or what was answered."""

    @abstractmethod
    async def ask(self, history: list[Any], output: int, ignore_eos: bool, leaves: int | None) -> Answer:
        """Stream an answer of at most `output` tokens; hang up after `leaves`. Raises HeteroError for a refusal."""

    async def lines(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Events of a streamed answer."""
        async with self.session.post(self.url + path, json=body) as response:
            if response.status != 200:
                raise HeteroError(f"{self.url}{path} says {response.status}: {(await response.text())[:200]}")
            async for line in response.content:
                if line.startswith(b"data:") and b"[DONE]" not in line:
                    event = json.loads(line[5:])
                    if "error" in event:
                        raise HeteroError(f"{self.url}{path} gave up on a prompt: {event['error']}")
                    yield event


class Sglang(Backend):
    """`/generate`, by token ids."""

    def said(self, history: list[Any], ids: list[int], answer: Answer | None = None) -> None:
        history += answer.ids if answer else ids

    async def ask(self, history: list[Any], output: int, ignore_eos: bool, leaves: int | None) -> Answer:
        sampling = {"temperature": 0, "max_new_tokens": output, "ignore_eos": ignore_eos}
        answer = Answer(time.perf_counter())
        async for event in self.lines("/generate", {"input_ids": history, "sampling_params": sampling, "stream": True}):
            told = event["meta_info"]
            answer.came(told["completion_tokens"])
            answer.prompt_tokens, answer.cached_tokens = told["prompt_tokens"], told.get("cached_tokens")
            ids = event["output_ids"]  # all of them, or with --incremental-streaming-output the new ones
            answer.ids = ids if len(ids) == told["completion_tokens"] else answer.ids + ids
            if leaves is not None and told["completion_tokens"] >= leaves:
                break
        return answer


class OpenAI(Backend):
    """`/v1/chat/completions` of any server; token ids become words."""

    def said(self, history: list[Any], ids: list[int], answer: Answer | None = None) -> None:
        text = answer.text if answer else " ".join(f"w{number}" for number in ids)
        history.append({"role": "assistant" if answer else "user", "content": text})

    async def ask(self, history: list[Any], output: int, ignore_eos: bool, leaves: int | None) -> Answer:
        messages = _joined(history)
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": output, "stream": True}
        body |= {"stream_options": {"include_usage": True}} | ({"ignore_eos": True} if ignore_eos else {})
        answer, events = Answer(time.perf_counter()), 0
        async for event in self.lines("/v1/chat/completions", body):
            if usage := event.get("usage"):
                answer.prompt_tokens = usage["prompt_tokens"]
                details = usage.get("prompt_tokens_details") or {}
                answer.cached_tokens = details.get("cached_tokens")
                if answer.counts:
                    answer.counts[-1] = max(answer.counts[-1], usage["completion_tokens"])
            for choice in event.get("choices", ()):
                if text := choice["delta"].get("content"):
                    answer.text, events = answer.text + text, events + 1
                    answer.came(events)  # an event is a token, or some; usage says at the end
            if leaves is not None and events >= leaves:
                break
        return answer


def _joined(history: list[dict[str, str]]) -> list[dict[str, str]]:
    """Messages of one role in a row as one: a document and the first question."""
    messages: list[dict[str, str]] = []
    for each in history:
        if messages and messages[-1]["role"] == each["role"]:
            messages[-1] = {**each, "content": messages[-1]["content"] + "\n\n" + each["content"]}
        else:
            messages.append(dict(each))
    return messages


BACKENDS: dict[str, type[Backend]] = {"sglang": Sglang, "openai": OpenAI}
