"""Who disturbs the server while its clients ask: kills and stops the retrieval worker, flushes, pauses, aborts all."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import aiohttp
import psutil

from benchmarks.soak import pools
from benchmarks.soak.door import Door
from benchmarks.soak.tally import Tally

DEEDS = {
    "kill": 4, "stop": 3, "flush": 2, "pause in place": 3, "pause and retract": 1, "pause and abort": 0.25,
    "abort all": 0.25, "quiet": 0.5,
}  # fmt: skip  # weights
STALL = 0.2, 6.0  # seconds that the worker is stopped, from and to: a server kills one that is silent for 4
PAUSE = 0.05, 0.8  # seconds


class Saboteur:
    """One deed every few seconds. A quiet one holds the clients back, flushes, and looks whether all is there."""

    def __init__(
        self, door: Door, tally: Tally, gate: asyncio.Event, process: int, seed: int, patience: float, ours: bool = True
    ) -> None:
        """`process`: the server's; `ours`: it has statistics, and perhaps a worker."""
        self.door, self.tally, self.gate, self.process = door, tally, gate, process
        self.patience, self.ours = patience, ours
        self.deeds: Counter[str] = Counter()
        self.found: list[str] = []  # what was not as it should be
        self.stop = asyncio.Event()
        self._rng = random.Random(f"{seed} saboteur")
        self._ways: dict[str, Callable[[], Awaitable[bool]]] = {
            "kill": self._kill,
            "stop": self._stop,
            "flush": self._flush,
            "pause in place": partial(self._pause, "in_place"),
            "pause and retract": partial(self._pause, "retract"),
            "pause and abort": partial(self._pause, "abort"),
            "abort all": self._abort_all,
            "quiet": self._quiet,
        }

    async def run(self, every: float) -> None:
        """Until it is told to stop; what it has begun it ends, so that no server is left paused."""
        while not await self._told(self._rng.uniform(0.3, 1.7) * every):
            deed = self._rng.choices(list(DEEDS), list(DEEDS.values()))[0]
            try:
                done = await self._ways[deed]()
            except (aiohttp.ClientError, OSError):  # the server's end is told by its clients
                done = False
            self.deeds[deed if done else f"{deed}, in vain"] += 1

    async def _told(self, within: float) -> bool:
        """Whether it was told to stop within so many seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), within)
        return self.stop.is_set()

    async def _worker(self) -> psutil.Process | None:
        """The retrieval worker, if there is one: a child of the server, whatever process has its number now."""
        pid = (await self.door.stats())["worker_pid"] if self.ours else 0
        with contextlib.suppress(psutil.NoSuchProcess):
            if pid and any(parent.pid == self.process for parent in psutil.Process(pid).parents()):
                return psutil.Process(pid)
        return None

    async def _kill(self) -> bool:
        worker = await self._worker()
        if worker is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        return worker is not None

    async def _stop(self) -> bool:
        worker = await self._worker()
        if worker is None:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.suspend()
        try:
            await self._told(self._rng.uniform(*STALL))
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.resume()
        return True

    async def _flush(self) -> bool:
        """Mostly refused, as somebody runs."""
        return (await self.door.post("/flush_cache"))[0] == 200

    async def _abort_all(self) -> bool:
        with self.tally.aborting():
            status, _ = await self.door.post("/abort_request", {"rid": "", "abort_all": True})
        return status == 200

    async def _pause(self, mode: str) -> bool:
        try:
            with self.tally.aborting() if mode == "abort" else contextlib.nullcontext():
                paused, _ = await self.door.post("/pause_generation", {"mode": mode})
            await asyncio.sleep(self._rng.uniform(*PAUSE))
        finally:
            went_on, _ = await self.door.post("/continue_generation")
        return paused == went_on == 200

    async def _quiet(self) -> bool:
        self.gate.clear()
        try:
            deadline = time.monotonic() + self.patience
            while self.tally.under_way and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            if self.tally.under_way:
                return False  # they will count as hung
            self.found += await pools.settle(self.door, self.ours)
            return True
        finally:
            self.gate.set()
