"""Episodes against a real server: each turn sends the whole history as ids, of which the server has all but the end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.launch import Server

from .energy import Energy
from .episode import Outcome, play, summary
from .layout import Layout
from .words import REPLY


class ServerPlayer:
    """Asks a server for greedy replies; `request` is more of each request, `seconds` what each one took."""

    def __init__(self, server: Server, request: dict[str, Any] | None = None) -> None:
        self.server, self.request = server, request
        self.seconds: list[float] = []
        self.prompt_tokens = self.cached_tokens = 0

    def replies(self, histories: Sequence[tuple[int, Sequence[int]]]) -> list[list[int]]:
        """As Player's; several episodes' are asked for at once."""
        if len(histories) == 1:
            return [self._ask(histories[0][1])]
        with ThreadPoolExecutor(len(histories)) as pool:
            return list(pool.map(self._ask, [ids for _, ids in histories]))

    def _ask(self, ids: Sequence[int]) -> list[int]:
        began = time.perf_counter()
        reply = self.server.generate(list(ids), REPLY, self.request, ignore_eos=True)
        self.seconds.append(time.perf_counter() - began)
        self.prompt_tokens += reply["meta_info"]["prompt_tokens"]
        self.cached_tokens += reply["meta_info"]["cached_tokens"]
        return [int(each) for each in reply["output_ids"]]


def measure(
    server: Server, layout: Layout, seeds: Sequence[int], at_once: int = 1, request: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What came of the worlds of these seeds, `at_once` at a time, and what an action took."""
    play(layout.of(1), [10**6], ServerPlayer(server, request))  # warms the server up
    server.flush()
    before = _counters(server)
    player, energy = ServerPlayer(server, request), Energy()
    outcomes: list[Outcome] = []
    began = time.monotonic()
    for first in range(0, len(seeds), at_once):
        outcomes += play(layout, seeds[first : first + at_once], player)
    joules, seconds = energy.spent(), time.monotonic() - began
    after = _counters(server)
    return {
        **summary(outcomes),
        **latency(player.seconds),
        "at_once": at_once,
        "seconds": round(seconds, 1),
        "cached_share": player.cached_tokens / player.prompt_tokens,
        "joules": joules,
        "counters": {name: after[name] - before.get(name, 0) for name in after},
        "server_memory_gb": (server.get("/server_info").get("internal_states") or [{}])[0].get("memory_usage"),
        "outcomes": [vars(each) for each in outcomes],
    }


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds of an action: median, 99th percentile, mean."""
    ordered = sorted(seconds)
    last = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
    return {
        "p50_ms": 1000 * statistics.median(ordered),
        "p99_ms": 1000 * last,
        "mean_ms": 1000 * statistics.fmean(ordered),
    }


def _counters(server: Server) -> dict[str, float]:
    """The first rank's numbers that grow: of compression and of exits; none from a server without the policy."""
    try:
        stats = server.stats()
    except (OSError, IndexError, TypeError):
        return {}
    wanted = ("kept_bytes", "dense_bytes", "compressed_requests", "fetched_rows", "late_rows")
    exits = stats.get("early_exit", {})
    found = {name: stats[name] for name in wanted if name in stats}
    return found | {
        f"exit_{name}": exits[name] for name in ("tokens", "layers_run", "compared", "agreed") if name in exits
    }
