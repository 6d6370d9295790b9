"""Command line of the soak: a server in little memory, thousands of mixed requests, and a verdict."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.launch import ROOT, Server
from benchmarks.recall import Language
from benchmarks.results import put, run_information
from benchmarks.run import named
from benchmarks.soak import verdict
from benchmarks.soak.crowd import Crowd
from benchmarks.soak.progress import Progress
from benchmarks.soak.run import Load, Soaked, soak
from hetero_sglang.errors import ending_the_process

# Little room: two long prompts fill it. Every few steps a request is retracted.
ROOM: dict[str, Any] = {"max_total_tokens": 3200, "chunked_prefill_size": 512}
OURS: dict[str, Any] = {"hetero_keep_ratio": 0.6, "hetero_window": 16, "hetero_dense_below": 256}
RETRACT = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "11"}
# On a CPU torch keeps what it has made for each shape of a matrix, a thousand of them: 600 MB that would hide a leak.
FLAT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Start a server, hold the soak, say what was broken; exit code 1 where anything was."""
    given = make_parser().parse_args(arguments)
    with ending_the_process():
        row = run(given)
    print(table(row))
    if given.json:
        put(given.json, row)
        print("saved", given.json)
    for sentence in row["broken"]:
        print(f"BROKEN: {sentence}")
    sys.exit(1 if row["broken"] else 0)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """A server's start, the soak, its end: one row of results."""
    model = ROOT / "assets" / given.model
    crowd = Crowd(Language.load(model), given.clients, given.seed)
    load = Load(given.requests, given.limit, given.seed, given.patience)
    flags = flags_of(given)
    with Server(model=model, log=given.log, env=RETRACT | FLAT, **flags) as server, Progress(load.requests) as progress:
        soaked = asyncio.run(soak(server, crowd, load, progress.tell, given.kv_policy != "full"))
        alive = server.alive
    log = server.log.read_text(errors="replace")
    return row_of(given, flags, soaked, alive, log)


def row_of(given: argparse.Namespace, flags: dict[str, Any], soaked: Soaked, alive: bool, log: str) -> dict[str, Any]:
    """What is kept of it."""
    by = f" ({given.hetero_index})" if given.kv_policy == "heterocache" else ""
    return {
        "name": f"{given.kv_policy}{by}, page size {given.page_size}",
        **run_information(),
        "flags": flags,
        "clients": given.clients,
        "seed": given.seed,
        **soaked.as_dict(),
        "retractions": log.count("Testing retraction") + log.count("Retract requests"),
        "flushes": log.count("Cache flushed successfully"),
        "broken": [*soaked.broken, *verdict.of_the_end(alive, log, soaked.watch.left_over())],
    }


def flags_of(given: argparse.Namespace) -> dict[str, Any]:
    """The server's."""
    ours = {} if given.kv_policy == "full" else dict(OURS)
    if given.kv_policy == "heterocache":
        ours["hetero_index"] = given.hetero_index
    room = {"kv_policy": given.kv_policy, "page_size": given.page_size, **ROOM}
    return {**room, **ours, **named(given.flags)}


def table(row: dict[str, Any]) -> str:
    """The numbers that say how it went."""
    ends = ", ".join(f"{count} {end}" for end, count in row["ends"].items())
    deeds = ", ".join(f"{count} {deed}" for deed, count in sorted(row["deeds"].items()))
    lines = [
        row["name"],
        f"  {row['sent']} requests in {row['wall_seconds']:.0f} s: {ends}; {len(row['foreign'])} foreign",
        f"  seconds for an answer: {row['seconds']}",
        f"  {row['entries_right']} of {row['entries_asked']} entries right, {row['retractions']} retractions",
        f"  deeds: {deeds}; {row['flushes']} flushes",
    ]
    for name, (before, after) in (row["quarters"] or {}).items():
        lines.append(f"  {name}: {before:.0f}, then {after:.0f}")
    if not row["quarters"]:
        lines.append("  too few samples to say whether anything grew")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    add, usual = parser.add_argument, Load()
    add("--requests", type=int, default=usual.requests, help=f"({usual.requests})")
    add("--limit", type=float, metavar="SECONDS", help="ask nothing more then (no limit)")
    add("--clients", type=int, default=32, help="that ask at once, each with a document of its own (32)")
    add("--page-size", type=int, default=1, help="of the server's token slots (1)")
    add("--seed", type=int, default=0, help="of everything that is drawn (0)")
    add("--model", default="recall-8m", help="a recall model in assets/ (recall-8m)")
    add("--kv-policy", default="heterocache", help="(heterocache)")
    add("--hetero-index", default="auto", help="how heterocache's heads find rows: none, directions or auto (auto)")
    add("--flags", nargs="*", default=[], metavar="NAME=VALUE", help="more flags of the server")
    add("--patience", type=float, default=usual.patience, metavar="SECONDS", help=f"for an answer ({usual.patience:g})")
    add("--json", type=Path, metavar="FILE", help="keep the run there, beside runs of other settings")
    add("--log", type=Path, metavar="FILE", help="of the server")
    return parser
