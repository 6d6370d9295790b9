"""What the scheduler says once a second, for everybody who watches: one question for all, and none for nobody."""

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

logger = logging.getLogger("hetero_sglang")

RATES = ("decoded_tokens", "prefilled_tokens", "fetched_rows")  # counters whose growth in a second is told
POINTS = 600  # of the history, a second each
_EVERY = 1.0  # seconds
_GAP = 10.0  # seconds without an answer: what was counted meanwhile is no rate of now
_QUIET = 5.0  # seconds after which a stream says that it lives, so that one whose client has gone is found


class Feed:
    """Asks while there are watchers. `ask`: every rank's state now; `ended`: whether the server winds down."""

    def __init__(self, ask: Callable[[], Awaitable[list[dict[str, Any]]]], ended: Callable[[], bool]) -> None:
        self._ask, self._ended = ask, ended
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._latest: dict[str, Any] | None = None
        self._text = ""  # of the latest, made once for all
        self._number = 0  # of the latest
        self._news = asyncio.Event()  # replaced by the next one when it is set
        self._history: deque[list[float | None]] = deque(maxlen=POINTS)  # time, RATES, requests waiting

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Somebody watches meanwhile."""
        self._watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._poll())
        try:
            yield
        finally:
            self._watchers -= 1

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events until the server winds down: the first has the history; a slow reader misses some."""
        seen, history = self._number, True
        if self._latest is not None:
            seen -= 1  # it is at most a second old
        quiet = time.monotonic()
        while not self._ended():
            if self._number > seen and self._latest is not None:
                seen, quiet = self._number, time.monotonic()
                text = _event({**self._latest, "history": list(self._history)}) if history else self._text
                history = False
                yield text
            elif time.monotonic() - quiet > _QUIET:
                quiet = time.monotonic()
                yield ": nothing new\n\n"
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), _EVERY)

    async def _poll(self) -> None:
        """Until nobody watches. It is not cancelled: SGLang would give the answer to whoever asks next."""
        while self._watchers:
            begun = time.monotonic()
            try:
                ranks = await self._ask()
                rates = rates_between(self._latest["ranks"] if self._latest else [], ranks)
                waiting = sum(rank["waiting"] for rank in ranks)
                self._latest = {"at": round(time.time(), 2), "rates": rates, "waiting": waiting, "ranks": ranks}
                self._text = _event(self._latest)
                self._history.append([self._latest["at"], *rates.values(), waiting])
                self._number += 1
                self._news.set()
                self._news = asyncio.Event()
            except Exception:  # the next second may do better; watchers see that nothing comes
                logger.warning("the status page got no answer from the scheduler", exc_info=True)
            await asyncio.sleep(max(0.0, begun + _EVERY - time.monotonic()))
        self._task = self._latest = None


def _event(told: dict[str, Any]) -> str:
    return f"data: {json.dumps(told, separators=(',', ':'))}\n\n"


def rates_between(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> dict[str, float | None]:
    """By name of RATES, how much they have grown in a second on all ranks together; None where that is unknown."""
    spans = [rank["clock"] - old["clock"] for old, rank in zip(before, now, strict=False)]
    if len(before) != len(now) or not all(0 < span < _GAP for span in spans):
        return dict.fromkeys(RATES)
    return {
        name: round(sum((n[name] - o[name]) / s for o, n, s in zip(before, now, spans, strict=True)), 1)
        for name in RATES
    }
