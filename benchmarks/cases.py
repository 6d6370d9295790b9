"""One speed case: a batch of requests that stream together, first without and then with a cached prefix."""

from __future__ import annotations

import random
import statistics
from typing import Any

from benchmarks.dummy import random_prompt
from benchmarks.launch import Server
from benchmarks.streams import Stream, gaps, run_together, step_seconds

COUNTERS = (
    "drift_checks", "drift_triggers", "fetches", "late_fetches", "fetched_rows", "fetched_bytes", "failed_fetches",
    "refused_fetches", "dropped_rows",
)  # fmt: skip


def measure(server: Server, batch: int, tokens: int, steps: int, rounds: int) -> dict[str, Any]:
    """`batch` requests of `tokens` tokens. The first round prefills them; the others hit the prefix."""
    rng = random.Random(tokens * 1000 + batch)
    prompts = [random_prompt(rng, tokens) for _ in range(batch)]
    first, hits, times, waits = 0.0, [], [], []
    for number in range(rounds + 1):
        tail = random_prompt(rng, 64) if number else []
        streams = [Stream(server.url, prompt + tail, steps) for prompt in prompts]
        run_together(streams)
        seconds = max(stream.first_token_seconds for stream in streams)
        if number == 0:
            first = seconds
            continue
        hits.append(seconds)
        times.append(step_seconds(streams))
        waits += gaps(streams)
    server.flush()
    return {
        "batch": batch,
        "tokens": tokens,
        "first_token_seconds": first,
        "first_token_seconds_prefix_hit": statistics.median(hits),
        "step_seconds": statistics.median(times),
        "step_seconds_mean": statistics.mean(times),
        "step_seconds_p50": statistics.median(waits),
        "step_seconds_p99": statistics.quantiles(waits, n=100)[98],
        "step_seconds_all": times,
    }


def counted(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """What the server's counters of fetches rose by."""
    return {name: after[name] - before[name] for name in COUNTERS if name in after}
