"""What watching costs a server on a GPU: decode steps without metrics, with them, and with somebody who looks at them.

Random weights of the Llama-3.1-8B shape under heterocache, whose heads have key indexes and get rows in every step. Two
servers are up together and take turns; "watched" is the one with metrics while /metrics is scraped and the status page
is open, once a second both.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import random
import statistics
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks import shapes
from benchmarks.alternation import up
from benchmarks.cases import spread, stream
from benchmarks.dummy import changed_rows, dummy_server, index_profile, random_prompt, rows_at_once
from benchmarks.launch import Server
from benchmarks.run import Run, add_log_option, add_options
from benchmarks.streams import gaps
from hetero_sglang.sizing.typical import RUNS_SHARES, TURNS, WEIGHTS

WITHOUT, WITH, WATCHED = "without metrics", "with metrics", "watched"


def main() -> None:
    """A table, and JSON in results/watching.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watching", description=__doc__)
    parser.add_argument("--keep-ratio", default="0.15")
    parser.add_argument("--changed-rows", type=int, default=15, help="that come to a head and step on the mean (15)")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=8)
    add_options(parser, "watching")
    add_log_option(parser)
    given = parser.parse_args()
    told = {name: getattr(given, name) for name in ("keep_ratio", "changed_rows", "requests", "tokens", "steps")}
    with Run(given, **told) as run, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, profile = shapes.write(folder / "llama-8b"), str(index_profile(folder, TURNS, RUNS_SHARES, WEIGHTS))
        room = given.requests * (given.tokens + 2 * given.steps)
        env = changed_rows(rows_at_once(profile, given.changed_rows))
        flags = {"hetero_index": "directions", "max_total_tokens": room}
        servers = {
            name: dummy_server(model, given.keep_ratio, profile, run.log(name.split()[0]), env, **flags, **more)
            for name, more in (
                (WITHOUT, {"mem_fraction_static": 0.4}),
                (WITH, {"mem_fraction_static": 0.7, "enable_metrics": True}),
            )
        }
        run.does("the servers' start")
        with up(servers):
            run.does("the rounds")
            for row in rows(measured(servers, given)):
                print(line(run.keep(row)), flush=True)
    print("saved", run.save())


def measured(servers: dict[str, Server], given: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Seconds from token to token, by kind and round; a first round, not counted, prefills."""
    rng = random.Random(0)
    prompts = [random_prompt(rng, given.tokens) for _ in range(given.requests)]
    kinds = {WITHOUT: servers[WITHOUT], WITH: servers[WITH], WATCHED: servers[WITH]}
    waits: dict[str, list[list[float]]] = {name: [] for name in kinds}
    for number in range(given.rounds + 1):
        for name, server in kinds.items():
            with watching(server) if name == WATCHED else contextlib.nullcontext():
                streams = stream(server, prompts, given.steps)
            if number:
                waits[name].append(gaps(streams))
    return waits


@contextlib.contextmanager
def watching(server: Server) -> Iterator[None]:
    """Somebody does: a scrape each second, and a reader of the page's events."""
    left, address = threading.Event(), urlsplit(server.url).netloc

    def scrape() -> None:
        while not left.wait(1.0):
            server.get("/metrics")

    def look() -> None:
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.request("GET", "/hetero/events")
        reply = connection.getresponse()
        while not left.is_set():
            reply.readline()
        connection.close()

    threads = [threading.Thread(target=each, daemon=True) for each in (scrape, look)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        left.set()
        for thread in threads:
            thread.join()


def rows(waits: dict[str, list[list[float]]]) -> list[dict[str, Any]]:
    """Of each kind its steps, and what they cost beside the round's without metrics: the mean of the rounds' ratios,
    less one, and its standard error."""
    made, plain = [], [statistics.mean(own) for own in waits[WITHOUT]]
    for name, own in waits.items():
        ratios = [statistics.mean(each) / beside - 1 for each, beside in zip(own, plain, strict=True)]
        error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else None
        made.append({"kind": name, **spread(own), "cost": statistics.mean(ratios), "cost_error": error})
    return made


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    text = f"{row['kind']:<16} step mean {1e3 * row['step_seconds']:.3f} ms, P50 {1e3 * row['step_seconds_p50']:.3f}"
    error = f" +- {100 * row['cost_error']:.2f}" if row["cost_error"] is not None else ""
    return text + f"  cost {100 * row['cost']:+.2f}{error} %"


if __name__ == "__main__":
    main()
