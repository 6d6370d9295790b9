"""Conversations on plain SGLang, on SGLang with its own host cache, and on heterocache, one server after the other.

In equal device KV bytes, with the named loads, or with one by the options of `benchmarks.multiturn`, which follow.
Random weights of the Llama-3.1-8B shape with key indexes of random directions; or a recall model, whose answers are
checked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import uvloop

from benchmarks import shapes
from benchmarks.capacity import token_slots
from benchmarks.dummy import FLAGS, changed_rows, index_profile, rows_at_once
from benchmarks.launch import Server
from benchmarks.multiturn.command import load_of, make_parser, run
from benchmarks.multiturn.load import Load
from benchmarks.run import Run, add_log_option, add_options, named
from hetero_sglang.errors import HeteroError, ending_the_process
from hetero_sglang.sizing.typical import RUNS_SHARES, TURNS, WEIGHTS

LOADS = {
    "documents": Load(),
    "long": Load(num_clients=8, documents=4, document_length=131072),
    "fits": Load(num_clients=4, documents=2),
    "hit": Load(num_clients=1, documents=1, document_length=131072, request_length=64),
    "hit-512": Load(num_clients=1, documents=1, document_length=131072, request_length=512),
    "mixed": Load(num_clients=2, documents=2, zipf=0, document_length=131072, short_chats=64),
    "short": Load(num_clients=0, short_chats=192, num_rounds=1),
}
WARM = Load(num_clients=2, documents=1, document_length=8192, output_length=8, short_chats=2)
SHOWN = (
    "output_token_throughput", "duration", "median_first_turn_ttft", "median_later_turn_ttft", "p90_later_turn_ttft",
    "p90_short_chat_ttft", "median_itl", "cache_hit_rate", "right", "right_of", "failed",
)  # fmt: skip


def main() -> None:
    """A table, and JSON in results/turns.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.turns", description=__doc__)
    add = parser.add_argument
    add(
        "--policies",
        nargs="+",
        default=["full", "hicache", "0.25"],
        help="full, hicache, or a keep ratio of heterocache, with options if wanted: 0.25:append=exact",
    )
    add("--loads", nargs="+", choices=sorted(LOADS), metavar="NAME", help=f"one after the other: {', '.join(LOADS)}")
    add("--load-limit", type=float, metavar="SECONDS", help="end a load then, with the turns that it has had")
    add("--kv-gb", type=float, default=24, help="device KV bytes of every policy (24)")
    add(
        "--changed-rows", type=int, default=15, help="that come to a head in a decode step, on the mean, at most (15): "
        "random weights would want others all the time",
    )  # fmt: skip
    add("--host-gb", type=int, default=72, help="SGLang's host cache (72)")
    add("--flags", nargs="*", default=[], help="NAME=VALUE server flags for every policy")
    add("--hetero-flags", nargs="*", default=[], help="NAME=VALUE server flags for heterocache")
    add_options(parser, "turns")
    add_log_option(parser)
    given, rest = parser.parse_known_args()
    asked = make_parser().parse_args(rest)
    with ending_the_process(), tempfile.TemporaryDirectory() as scratch:
        loads = {name: LOADS[name] for name in given.loads} if given.loads else {"": load_of(asked)}
        folder = Path(scratch)
        model = asked.recall or shapes.write(folder / "llama-8b")
        config = json.loads((model / "config.json").read_text())
        profile = model / "hetero_profile.json" if asked.recall else index_profile(folder, TURNS, RUNS_SHARES, WEIGHTS)
        env = None if asked.recall else changed_rows(rows_at_once(profile, given.changed_rows))
        told = {"changed_rows": env and given.changed_rows, "loads": {name: vars(load) for name, load in loads.items()}}
        with Run(given, kv_gb=given.kv_gb, host_gb=given.host_gb, **told) as measured:
            for policy in given.policies:
                measured.does(f"{policy}: the server's start")
                slots, host = token_slots(_ratio(policy), str(profile), int(given.kv_gb * 1e9), True, config)
                flags = {**_flags(policy, profile, given), **named(given.flags), "max_total_tokens": slots}
                flags = flags if asked.recall else FLAGS | flags
                with Server(model=model, log=measured.log(policy), env=env, **flags) as server:
                    asked.base_url, asked.tag, asked.name = server.url, policy, f"{given.name}-warm"
                    if not asked.recall:  # kernels are compiled
                        _held(asked, WARM, None)
                        server.flush()
                    for name, load in loads.items():
                        measured.does(f"{policy}: {name} {load.num_clients} clients, {slots} token slots")
                        asked.name = "-".join(filter(None, (given.name, name, policy)))
                        summary = _held(asked, load, given.load_limit)
                        row = {"policy": policy, "load": name, "token_slots": slots, "host_bytes": host, **summary}
                        stats = {} if policy in ("full", "hicache") else server.stats()
                        measured.keep({**row, "counters": {k: v for k, v in stats.items() if isinstance(v, int)}})
                        server.flush()
        for name in loads:
            print(name, table([row for row in measured.rows if row["load"] == name]), sep="\n")
        print("saved", measured.save())


def _held(asked: argparse.Namespace, load: Load, limit: float | None) -> dict[str, Any]:
    """What came of a load, and what ended it before its end."""

    async def within() -> dict[str, Any]:
        running = asyncio.create_task(run(asked, load))
        if not (await asyncio.wait({running}, timeout=limit))[0]:
            running.cancel()
        return await running

    made = uvloop.run(within())
    return {"summary": made["summary"], "stopped": made["stopped"]}


def _ratio(policy: str) -> str:
    return "full" if policy == "hicache" else policy.split(":")[0]


def _flags(policy: str, profile: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Server flags of a policy. Raises HeteroError for one that is none."""
    backend = None if torch.cuda.device_count() == 0 else "flashinfer"
    if policy == "full":
        return {"kv_policy": "full", "attention_backend": backend}
    if policy == "hicache":
        flags = {"enable_hierarchical_cache": True, "hicache_size": given.host_gb}
        return {"kv_policy": "full", "attention_backend": backend, **flags}
    ratio, *options = policy.split(":")
    try:
        flags = {"kv_policy": "heterocache", "hetero_keep_ratio": float(ratio), "hetero_profile": profile}
    except ValueError:
        raise HeteroError(f"--policies {policy}: write full, hicache or a keep ratio.") from None
    return {**flags, **named(given.hetero_flags), **{f"hetero_{k}": v for k, v in named(options).items()}}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a column for each policy; beside a number, how many times the first one's it is."""
    lines = ["| | " + " | ".join(row["policy"] for row in rows) + " |", "|---|" + "---|" * len(rows)]
    for name in SHOWN:
        values = [row["summary"][name] for row in rows]
        if any(value is not None for value in values):
            lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(_cell(v, values[0]) for v in values) + " |")
    return "\n".join(lines)


def _cell(value: float | None, first: float | None) -> str:
    if value is None:
        return "-"
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown if not first or value is first else f"{shown} ({value / first:.2f})"


if __name__ == "__main__":
    main()
