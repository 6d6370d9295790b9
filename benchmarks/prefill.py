"""Time to the first token of prompts without a prefix, on a GPU: heterocache beside plain SGLang, alternating.

Random weights of the Llama-3.1-8B shape, one request at a time. Before a length is measured, each server has served a
prompt of that length, so that nothing is compiled within the time; no prompt has anything in common with another.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import shapes
from benchmarks.alternation import groups, turns, up
from benchmarks.cases import stream
from benchmarks.dummy import add_policies_option, chosen_policies, dummy_server, index_profile, random_prompt
from benchmarks.launch import Server
from benchmarks.run import Run, add_log_option, add_options


def main() -> None:
    """A table, and JSON in results/prefill.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefill", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32768, 131072])
    add_policies_option(parser)
    parser.add_argument(
        "--index", action="store_true", help="each keep ratio also with key indexes of random directions, and without "
        "resident heads in both",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="one server at a time, where the card cannot hold all")
    add_options(parser, "prefill")
    add_log_option(parser)
    given = parser.parse_args()
    policies = given.policies if given.index else chosen_policies(given)
    flags = {"max_total_tokens": max(given.tokens) + 4096, "max_running_requests": 4}
    rng = random.Random(0)
    with Run(given) as run, tempfile.TemporaryDirectory() as scratch:
        model = shapes.write(Path(scratch) / "llama-8b")
        profile = str(index_profile(Path(scratch))) if given.index else given.profile
        servers = {policy: dummy_server(model, policy, profile, run.log(policy), **flags) for policy in policies}
        for policy in policies if given.index else []:
            if policy != "full":
                name = f"{policy}-index"
                servers[name] = dummy_server(model, policy, profile, run.log(name), hetero_index="directions", **flags)
        for group in groups(servers, given.alone):
            run.does(f"{', '.join(group)}: start")
            with up(group):
                for tokens in given.tokens:
                    run.does(f"{', '.join(group)}: {tokens} tokens")
                    for row in measure(group, tokens, given.rounds, rng):
                        print(line(run.keep(row | beside(row, run.rows))), flush=True)
    print("saved", run.save())


def measure(servers: dict[str, Server], tokens: int, rounds: int, rng: random.Random) -> list[dict[str, Any]]:
    """A row per server: seconds to the first token of `rounds` prompts, after one that is not counted."""

    def first_token(server: Server) -> float:
        (told,) = stream(server, [random_prompt(rng, tokens)], 1)
        server.flush()
        return told.first_token_seconds

    found = turns(servers, rounds + 1, first_token)
    return [
        {
            "policy": policy,
            "tokens": tokens,
            "first_token_seconds": statistics.median(seconds[1:]),
            "first_token_seconds_all": seconds[1:],
            "warm_up_seconds": seconds[0],
        }
        for policy, seconds in found.items()
    ]


def beside(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """`ratio`: the dense row's time to the time here; empty for dense rows, or where none was measured before."""
    dense = [r for r in rows if r["policy"] == "full" and r["tokens"] == row["tokens"]]
    if row["policy"] == "full" or not dense:
        return {}
    return {"ratio": dense[0]["first_token_seconds"] / row["first_token_seconds"]}


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    every = ", ".join(f"{seconds:.3f}" for seconds in row["first_token_seconds_all"])
    ratio = f"  {row['ratio']:.3f}x" if "ratio" in row else ""
    seconds = f"{row['first_token_seconds']:7.3f} s ({every})"
    return f"{row['policy']:<10} {row['tokens']:>7} tokens: first token {seconds}{ratio}"


if __name__ == "__main__":
    main()
