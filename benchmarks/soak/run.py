"""One soak of a server that is up: clients, saboteur and watch on one event loop, and what came of it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from benchmarks.launch import Server
from benchmarks.soak import pools, verdict
from benchmarks.soak.client import Client
from benchmarks.soak.crowd import Crowd
from benchmarks.soak.door import Door
from benchmarks.soak.footprint import Watch
from benchmarks.soak.plan import Planner
from benchmarks.soak.saboteur import Saboteur
from benchmarks.soak.tally import Tally

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Load:
    """How long and how hard; `requests` or `limit` seconds, whichever is first."""

    requests: int = 10_000
    limit: float | None = None
    seed: int = 0
    patience: float = 120.0  # seconds for an answer
    deed: float = 3.0  # seconds between two of the saboteur's, on the mean
    sample: float = 2.0  # seconds between two footprints
    hurry: float = 1.0  # how much faster than usual clients think


@dataclass
class Soaked:
    """What came of it. `found`: what the pools lack, on the way and at the end."""

    tally: Tally
    watch: Watch
    deeds: dict[str, int]
    found: list[str]
    stats: dict[str, Any]
    seconds: float
    stopped: bool

    @property
    def broken(self) -> list[str]:
        """A sentence for each law that was broken while the server was up."""
        return [
            *verdict.of_requests(self.tally),
            *dict.fromkeys(self.found),
            *verdict.of_footprints(self.watch.samples),
        ]

    def as_dict(self) -> dict[str, Any]:
        samples = self.watch.samples
        kept = samples[:: max(1, len(samples) // 20)]
        return {
            "wall_seconds": round(self.seconds, 1),
            "stopped": self.stopped,
            **self.tally.as_dict(),
            "deeds": self.deeds,
            "counters": {name: value for name, value in self.stats.items() if isinstance(value, int)},
            "quarters": verdict.quarters(samples) if len(samples) >= verdict.FEWEST else None,
            "footprints": [asdict(sample) for sample in kept],
        }


async def soak(server: Server, crowd: Crowd, load: Load, tell: Callable[[Tally], None], ours: bool = True) -> Soaked:
    """Hold it; SIGINT and SIGTERM end it early, once those under way are answered.

    `ours`: the server has statistics. `tell` hears of the tally every second."""
    assert server.process is not None
    begun, stop, gate = time.monotonic(), asyncio.Event(), asyncio.Event()
    gate.set()
    tally, watch = Tally(), Watch(server.process.pid)

    def more() -> bool:
        over = load.limit is not None and time.monotonic() - begun > load.limit
        return tally.sent < load.requests and not over and not stop.is_set() and server.alive

    async def telling() -> None:
        while True:
            tell(tally)
            await asyncio.sleep(1)

    async with Door(server.url) as door:
        saboteur = Saboteur(door, tally, gate, server.process.pid, load.seed, load.patience, ours)
        clients = [
            Client(Planner(user, crowd.language, load.seed, load.hurry), crowd, door, tally, load.patience)
            for user in crowd.users
        ]
        disturbing = asyncio.create_task(saboteur.run(load.deed))
        beside = [asyncio.create_task(watch.run(load.sample)), asyncio.create_task(telling())]
        _once(stop.set)
        try:
            await asyncio.gather(*(client.run(more, gate) for client in clients))
        finally:
            saboteur.stop.set()
            await asyncio.wait((disturbing,))
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)
        for task in (disturbing, *beside):
            if not task.cancelled() and (error := task.exception()):
                saboteur.found.append(f"what disturbs and watches the server ended: {error!r}")
        stats: dict[str, Any] = {}
        try:
            if ours:
                stats = await door.stats()
            saboteur.found += await pools.settle(door, ours)
        except (aiohttp.ClientError, OSError) as error:
            saboteur.found.append(f"the server answers nobody at the end: {error!r}")
    deeds = dict(saboteur.deeds)
    return Soaked(tally, watch, deeds, saboteur.found, stats, time.monotonic() - begun, stop.is_set())


def _once(stop: Callable[[], None]) -> None:
    """The first signal ends the run in order; the next one ends it at once."""
    loop = asyncio.get_running_loop()

    def stopping() -> None:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
        stop()

    with suppress(RuntimeError, ValueError):  # not the main thread
        for number in SIGNALS:
            loop.add_signal_handler(number, stopping)
