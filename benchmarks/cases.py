"""One speed case: a batch of requests that stream together, first without and then with a cached prefix."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.dummy import random_prompt
from benchmarks.launch import Server
from benchmarks.streams import Stream, gaps, run_together

COUNTERS = (
    "drift_checks", "drift_triggers", "anchor_refreshes", "failed_rankings", "refused_rankings", "fetched_rows",
    "fetched_bytes", "late_rows", "prefix_rows_copied", "prefix_rows_read",
)  # fmt: skip


def measure(
    server: Server, batch: int, tokens: int, steps: int, rounds: int, rates: Sequence[float | None] = (None,),
    set_rate: Callable[[float | None], None] = lambda rate: None, counters: bool = False, temperature: float = 0.0,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """`batch` requests of `tokens` tokens: a row per fetch rate, as soon as it is known.

    A first round prefills the prompts, and compiles what is new; the others hit the prefix with 64 new tokens,
    `rounds` of them at each rate, after one that is not counted. Every row's `step_seconds` is the mean. `temperature`:
    1 makes each step's token, and so its queries, another's; greedily, random weights soon repeat one.
    """
    rng = random.Random(tokens * 1000 + batch)
    prompts = [random_prompt(rng, tokens) for _ in range(batch)]
    first = stream(server, prompts, steps, temperature=temperature)

    def hit() -> list[Stream]:
        tail = random_prompt(rng, 64)
        return stream(server, [prompt + tail for prompt in prompts], steps, temperature=temperature)

    hit()  # buffers of that size are allocated
    for rate in rates:
        set_rate(rate)
        before = server.stats() if counters else {}
        hits, waits = [], []
        for _ in range(rounds):
            streams = hit()
            hits.append(max(stream.first_token_seconds for stream in streams))
            waits.append(gaps(streams))
        row = {
            "fetch_rate": rate,
            "batch": batch,
            "tokens": tokens,
            "first_token_seconds": max(stream.first_token_seconds for stream in first),
            "first_token_seconds_prefix_hit": statistics.median(hits),
            **spread(waits),
        }
        if counters:
            after = server.stats()
            row |= counted(before, after)
            row |= {"host_bytes_per_token": after["host_bytes"] / after["token_slots"], "integrity": after["integrity"]}
        yield row
    server.flush()


def stream(
    server: Server, prompts: list[list[int]], steps: int, every: int = 1, temperature: float = 0.0
) -> list[Stream]:
    """The prompts' requests of `steps` tokens each, run together; `every`: tokens per message."""
    streams = [Stream(server.url, prompt, steps, every, temperature) for prompt in prompts]
    run_together(streams)
    return streams


def spread(waits: list[list[float]]) -> dict[str, Any]:
    """Mean, P50 and P99 of the steps of all rounds, and each round's mean: seconds from token to token, by round."""
    every = [wait for own in waits for wait in own]
    return {
        "step_seconds": statistics.mean(every),
        "step_seconds_p50": statistics.median(every),
        "step_seconds_p99": statistics.quantiles(every, n=100)[98],
        "step_seconds_all": [statistics.mean(own) for own in waits],
    }


def counted(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """What the server's counters of rows and rankings rose by."""
    return {name: after[name] - before[name] for name in COUNTERS if name in after}
