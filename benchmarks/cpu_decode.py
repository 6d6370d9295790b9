"""Decode speed on the CPU: heterocache beside plain SGLang's torch_native, alternating in one run."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from benchmarks import results
from benchmarks.launch import RECALL, Server
from benchmarks.recall import Language


def step_seconds(server: Server, ids: list[int], steps: int) -> float:
    """Seconds per decoded token: the longer generation's time less the shorter one's, prefix cached."""
    server.generate(ids, 2)
    times = []
    for count in (4, 4 + steps):
        reply = server.generate(ids, count, ignore_eos=True)
        times.append(reply["meta_info"]["e2e_latency"])
    return (times[1] - times[0]) / steps


def main() -> None:
    """Both servers stay up; rounds alternate between them, medians are compared."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_decode", description=__doc__)
    parser.add_argument("--tokens", type=int, default=12288)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    given = parser.parse_args()
    language = Language.load(RECALL)
    document = language.document(0, given.tokens, 100)
    ids = document.ids + language.ask(document, 0, 8).ids
    policies: dict[str, dict[str, Any]] = {
        "full": {"kv_policy": "full"},
        "heterocache": {"kv_policy": "heterocache", "hetero_keep_ratio": given.keep_ratio},
    }
    seconds: dict[str, list[float]] = {name: [] for name in policies}
    started: dict[str, float] = {}
    servers = {name: Server(**flags) for name, flags in policies.items()}
    try:
        for name, server in servers.items():
            server.start()
            started[name] = server.started_in
        for _ in range(given.rounds):
            for name, server in servers.items():
                seconds[name].append(step_seconds(server, ids, given.steps))
    finally:
        for server in servers.values():
            server.stop()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{given.tokens} tokens, keep ratio {given.keep_ratio}: milliseconds per token, median of {given.rounds}")
    for name, value in median.items():
        print(f"  {name:<16}{1000 * value:8.1f} ms  {median['full'] / value:5.2f}x  start-up {started[name]:.1f} s")
    saved = {
        "tokens": given.tokens,
        "keep_ratio": given.keep_ratio,
        "seconds_per_token": seconds,
        "speedup": median["full"] / median["heterocache"],
        "start_up_seconds": started,
    }
    print("saved", results.save("decode-cpu", saved))


if __name__ == "__main__":
    main()
