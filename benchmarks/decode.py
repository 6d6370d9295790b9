"""Prefill and decode speed on a GPU: plain SGLang and heterocache on the same card, one server after the other.

Random weights of the Llama-3.1-8B shape. Each case is a batch of requests that stream together: time to the first
token without and with a cached prefix, and seconds per decode step, beside what the bytes allow.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import results, shapes
from benchmarks.cases import counted, measure
from benchmarks.ceiling import judge
from benchmarks.dummy import dummy_server
from benchmarks.launch import Server

FETCH_RATE = "HETERO_FETCH_RATE"  # read by the server: share of the satellites refilled per look, whatever their drift


def plan(policies: list[str], rates: list[float]) -> list[tuple[str, float | None]]:
    """One server each: a policy and its fetch rate; None is real drift, and plain SGLang has no fetches."""
    return [(policy, rate) for policy in policies for rate in (rates if policy != "full" and rates else [None])]


def main() -> None:
    """A table, and JSON in results/decode.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--cases", nargs="+", default=["1x131072", "1x229376", "8x32768"], help="BATCHxTOKENS")
    parser.add_argument("--policies", nargs="+", default=["full", "0.25"], help="full, or a keep ratio of heterocache")
    parser.add_argument("--profile", help="head profile of the model (required for heterocache)")
    parser.add_argument(
        "--fetch-rate", nargs="*", type=float, default=[],
        help="one heterocache server per rate, in which each look refills this share of the satellites; "
        "without it, those that drift",
    )  # fmt: skip
    parser.add_argument("--max-total-tokens", type=int, default=300000)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="decode")
    parser.add_argument("--flags", nargs="*", default=[], help="NAME=VALUE server flags for every policy")
    parser.add_argument("--hetero-flags", nargs="*", default=[], help="NAME=VALUE server flags for heterocache")
    parser.add_argument("--log-dir", type=Path, default=None)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        model = shapes.write(Path(scratch) / "llama-8b")
        for policy, rate in plan(given.policies, given.fetch_rate):
            flags = _flags(given.flags) | (_flags(given.hetero_flags) if policy != "full" else {})
            name = f"{given.name}-{policy}" + (f"-{rate:g}" if rate is not None else "")
            log = given.log_dir / f"{name}.log" if given.log_dir else None
            env = {FETCH_RATE: f"{rate:g}"} if rate is not None else None
            flags = {"max_total_tokens": given.max_total_tokens, **flags}
            with dummy_server(model, policy, given.profile, log, env, **flags) as server:
                for case in given.cases:
                    rows.append(_measured(server, policy, rate, case, given, rows))
                    print(line(rows[-1]), flush=True)
            results.save(given.name, {"rows": rows, "max_total_tokens": given.max_total_tokens})
    print("saved", results.FOLDER / f"{given.name}.json")


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    rate = f" fetch {row['fetch_rate']:<5g}" if row.get("fetch_rate") is not None else ""
    text = (
        f"{row['policy']:<6}{rate} {row['batch']:>3} x {row['tokens']:>6}: step {1e3 * row['step_seconds']:7.2f} ms "
        f"(mean {1e3 * row['step_seconds_mean']:.2f}, P50 {1e3 * row['step_seconds_p50']:.2f}, "
        f"P99 {1e3 * row['step_seconds_p99']:.2f})  first token {row['first_token_seconds']:6.2f} s, "
        f"with a prefix hit {row['first_token_seconds_prefix_hit']:6.3f} s"
    )
    if "ratio" in row:
        text += f"  {row['ratio']:5.2f}x of {row['ceiling']:.2f}x ({row['percent_of_ceiling']:.0f}%)"
    if row.get("fetched_rows"):
        text += f"  {row['fetched_rows']} rows in {row['fetches']} fetches, {row['late_fetches']} late"
    return text


def _measured(
    server: Server, policy: str, rate: float | None, case: str, given: argparse.Namespace, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    batch, tokens = map(int, case.split("x"))
    before = server.stats() if policy != "full" else {}
    row = {"policy": policy, "fetch_rate": rate, **measure(server, batch, tokens, given.steps, given.rounds)}
    if policy == "full":
        return row
    after = server.stats()
    row |= counted(before, after) | {"integrity": after["integrity"]}
    dense = [r for r in rows if r["policy"] == "full" and (r["batch"], r["tokens"]) == (batch, tokens)]
    return row | judge(row, dense[0]) if dense else row


def _flags(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


if __name__ == "__main__":
    main()
