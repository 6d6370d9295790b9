"""Conversations held side by side on one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from hetero_sglang.errors import HeteroError

from .backends import Answer, Backend
from .content import Content
from .load import Round, Talk


@dataclass(frozen=True)
class Turn:
    """What became of one message; times in seconds, `begun` since the run's start."""

    client: int
    round: int
    document: int
    begun: float
    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int
    ttft: float | None
    latency: float
    itl: list[float]  # one for every token but the first
    left: bool  # the reader did not wait for the end
    right: int | None = None
    of: int | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def drive(
    talks: list[Talk], backend: Backend, content: Content, most: int | None, tell: Callable[[Turn], None]
) -> None:
    """Hold all of them, `most` messages at a time (None: any number); `tell` hears of each as it ends."""
    begun, room = time.perf_counter(), asyncio.Semaphore(most) if most else None
    await asyncio.gather(*(_hold(talk, backend, content, room, begun, tell) for talk in talks))


async def _hold(
    talk: Talk, backend: Backend, content: Content, room: asyncio.Semaphore | None, begun: float,
    tell: Callable[[Turn], None],
) -> None:  # fmt: skip
    await asyncio.sleep(talk.begins)
    history: list[Any] = []
    backend.said(history, content.opening(talk.document))
    for number, round_ in enumerate(talk.rounds):
        await asyncio.sleep(round_.think)
        backend.said(history, content.message(talk.document, talk.client, number))
        async with room or nullcontext():
            turn, answer = await _ask(talk, number, round_, history, backend, content, begun)
        tell(turn)
        if answer is None or turn.left:
            return  # a conversation ends where its reader leaves, or its server
        backend.said(history, [], answer)


async def _ask(
    talk: Talk, number: int, round_: Round, history: list[Any], backend: Backend, content: Content, begun: float
) -> tuple[Turn, Answer | None]:
    asked = time.perf_counter()
    key = talk.document, talk.client, number
    output = content.most(*key, round_.output)
    checks = content.check(*key, []) is not None
    try:
        answer = await backend.ask(history, output, not checks, round_.leaves)
    except (HeteroError, aiohttp.ClientError, TimeoutError, ValueError) as error:
        latency = time.perf_counter() - asked
        said = str(error) or type(error).__name__
        return Turn(*_who(talk, number, asked - begun), 0, None, 0, None, latency, [], False, error=said), None
    left = round_.leaves is not None
    right, of = (None, None) if left else content.check(*key, answer.ids) or (None, None)
    turn = Turn(
        *_who(talk, number, asked - begun), answer.prompt_tokens, answer.cached_tokens,
        answer.counts[-1] if answer.counts else 0, answer.times[0] - asked if answer.times else None,
        time.perf_counter() - asked, gaps(answer), left, right, of,
    )  # fmt: skip
    return turn, answer


def _who(talk: Talk, number: int, begun: float) -> tuple[int, int, int, float]:
    return talk.client, number, talk.document, begun


def gaps(answer: Answer) -> list[float]:
    """Seconds to each token but the first: tokens that came together share what passed."""
    found: list[float] = []
    pairs = list(zip(answer.times, answer.counts, strict=True))
    for (before, had), (now, have) in zip(pairs, pairs[1:], strict=False):
        found += [(now - before) / (have - had)] * (have - had)
    return [round(gap, 6) for gap in found]
