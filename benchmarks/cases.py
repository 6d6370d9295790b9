"""One speed case: a batch of requests that stream together, first without and then with a cached prefix."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.dummy import random_prompt
from benchmarks.launch import Server
from benchmarks.streams import Stream, gaps, run_together, step_seconds

COUNTERS = (
    "drift_checks", "drift_triggers", "fetches", "late_fetches", "fetched_rows", "fetched_bytes", "failed_fetches",
    "refused_fetches", "dropped_rows",
)  # fmt: skip


def measure(
    server: Server, batch: int, tokens: int, steps: int, rounds: int, rates: Sequence[float | None] = (None,),
    set_rate: Callable[[float | None], None] = lambda rate: None, counters: bool = False,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """`batch` requests of `tokens` tokens: a row per fetch rate.

    A first round prefills the prompts; the others hit the prefix, `rounds` of them at each rate.
    """
    rng = random.Random(tokens * 1000 + batch)
    prompts = [random_prompt(rng, tokens) for _ in range(batch)]
    first = _round(server, prompts, steps)
    for rate in rates:
        set_rate(rate)
        before = server.stats() if counters else {}
        times, hits, waits = [], [], []
        for _ in range(rounds):
            tail = random_prompt(rng, 64)
            streams = _round(server, [prompt + tail for prompt in prompts], steps)
            hits.append(max(stream.first_token_seconds for stream in streams))
            times.append(step_seconds(streams))
            waits += gaps(streams)
        row = {
            "fetch_rate": rate,
            "batch": batch,
            "tokens": tokens,
            "first_token_seconds": max(stream.first_token_seconds for stream in first),
            "first_token_seconds_prefix_hit": statistics.median(hits),
            "step_seconds": statistics.median(times),
            "step_seconds_mean": statistics.mean(times),
            "step_seconds_p50": statistics.median(waits),
            "step_seconds_p99": statistics.quantiles(waits, n=100)[98],
            "step_seconds_all": times,
        }
        if counters:
            after = server.stats()
            row |= counted(before, after) | {"integrity": after["integrity"]}
        yield row
    server.flush()


def _round(server: Server, prompts: list[list[int]], steps: int) -> list[Stream]:
    streams = [Stream(server.url, prompt, steps) for prompt in prompts]
    run_together(streams)
    return streams


def counted(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """What the server's counters of fetches rose by."""
    return {name: after[name] - before[name] for name in COUNTERS if name in after}
