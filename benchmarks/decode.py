"""Decode speed on a GPU: plain SGLang and heterocache on the same card, one server after the other.

Random weights of the Llama-3.1-8B shape. Each case is a batch of requests that stream together: seconds per decode
step beside what the bytes allow, where no row comes and where as many do as on a real model (SmolLM2-135M: 15 to a
head in a step), and the time to the first token of a prefix hit beside the copy of its compressed heads. Time to the
first token without a hit includes compilation; benchmarks.prefill measures it without.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import shapes
from benchmarks.bandwidth import copied
from benchmarks.cases import measure
from benchmarks.dummy import (
    add_index_options,
    add_policies_option,
    changed_rows,
    chosen_policies,
    dummy_server,
    forced_rate,
    index_profile,
    rows_at_once,
)
from benchmarks.run import Run, add_log_option, add_options, named
from benchmarks.verdict import verdict


def main() -> None:
    """A table, and JSON in results/decode.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument(
        "--cases", nargs="+", default=["1x131072", "1x229376", "8x32768", "32x8192"],
        help="BATCHxTOKENS",
    )  # fmt: skip
    add_policies_option(parser, "0.15")
    parser.add_argument(
        "--fetch-rate", nargs="*", type=float, default=[],
        help="heads find rows by pivots, and each look refills these shares of the satellites",
    )  # fmt: skip
    parser.add_argument(
        "--changed-rows", nargs="*", type=int, default=[0, 15],
        help="heads have key indexes of random directions, and so many rows come to a head and step on the mean: each "
        "token is another one, so that heads that look for rows want hundreds; no number: by pivots, as they drift",
    )  # fmt: skip
    add_index_options(parser)
    parser.add_argument("--max-total-tokens", type=int, default=300000)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flags", nargs="*", default=[], help="NAME=VALUE server flags for every policy")
    parser.add_argument("--hetero-flags", nargs="*", default=[], help="NAME=VALUE server flags for heterocache")
    add_options(parser, "decode")
    add_log_option(parser)
    given = parser.parse_args()
    if given.fetch_rate:
        given.changed_rows = []
    policies = given.policies if given.changed_rows else chosen_policies(given)
    with Run(
        given,
        max_total_tokens=given.max_total_tokens,
        steps=given.steps,
        index_turns=given.index_turns,
        index_runs=given.index_runs,
        index_weights=given.index_weights,
    ) as run:
        run.does("the copy bandwidth")
        run.told["copy_bytes_per_second"] = copied()
        for policy in policies:
            with tempfile.TemporaryDirectory() as scratch:
                _measure(policy, given, run, Path(scratch))
    print("saved", run.save())


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    rate = f" fetch {row['fetch_rate']:<5g}" if row.get("fetch_rate") is not None else ""
    mean, p50, p99 = (1e3 * row[f"step_seconds{which}"] for which in ("", "_p50", "_p99"))
    text = (
        f"{row['policy']:<6}{rate} {row['batch']:>3} x {row['tokens']:>6}: "
        f"step mean {mean:7.2f} ms, P50 {p50:.2f}, P99 {p99:.2f}"
    )
    if "ratio" in row:
        text += (
            f"  {row['ratio']:5.2f}x of {row['ceiling']:.2f}x ({row['percent_of_ceiling']:.0f}%), "
            f"P50 {row['ratio_p50']:.2f}x ({row['percent_of_ceiling_p50']:.0f}%)"
        )
    if "p50_of_rate_0" in row:
        text += f", {100 * (row['p50_of_rate_0'] - 1):+.1f}% of rate 0"
    text += f"  prefix hit {row['first_token_seconds_prefix_hit']:6.3f} s"
    if "floor_seconds" in row:
        text += f" of {row['floor_seconds']:.3f} s copy ({row['hit_of_floor']:.2f}x)"
    if row.get("fetched_rows"):
        text += f"  {row['fetched_bytes'] / 1e6:.1f} MB, {row['fetched_rows']} rows, {row['late_rows']} late"
    if lost := row.get("failed_rankings", 0) + row.get("refused_rankings", 0):
        text += f"  {lost} rankings lost"
    return text


def _measure(policy: str, given: argparse.Namespace, run: Run, scratch: Path) -> None:
    ours = policy != "full"
    index = {"hetero_index": "directions"} if ours and given.changed_rows else {}
    more = named(given.flags + (given.hetero_flags if ours else []))
    flags = {"max_total_tokens": given.max_total_tokens, **index, **more}
    rates, file = given.changed_rows or given.fetch_rate if ours else [], scratch / "rate"
    file.write_text("0")
    env = (changed_rows if given.changed_rows else forced_rate)(file) if rates else None
    profile = given.profile
    if given.changed_rows:
        profile = str(index_profile(scratch, given.index_turns, given.index_runs, given.index_weights))

    def told(rate: float | None) -> None:
        file.write_text(str(rows_at_once(profile, rate) if given.changed_rows and rate else rate))

    run.does(f"{policy}: the server's start")
    model = shapes.write(scratch / "llama-8b")
    with dummy_server(model, policy, profile, run.log(policy), env, **flags) as server:
        for case in given.cases:
            run.does(f"{policy}: {case}")
            batch, tokens = map(int, case.split("x"))
            size = batch, tokens, given.steps, given.rounds
            warm = 1.0 if given.changed_rows else 0.0
            for row in measure(server, *size, rates or [None], told, ours, warm):
                row = {"policy": policy, **row}
                print(line(run.keep(row | verdict(row, run.rows, run.told["copy_bytes_per_second"]))), flush=True)


if __name__ == "__main__":
    main()
