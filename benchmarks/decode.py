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
from benchmarks.cases import measure
from benchmarks.ceiling import judge
from benchmarks.dummy import dummy_server

FETCH_RATE = "HETERO_FETCH_RATE"  # a file with the share of the satellites that every look refills, whatever they hold


def main() -> None:
    """A table, and JSON in results/decode.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--cases", nargs="+", default=["1x131072", "1x229376", "8x32768"], help="BATCHxTOKENS")
    parser.add_argument("--policies", nargs="+", default=["full", "0.25"], help="full, or a keep ratio of heterocache")
    parser.add_argument("--profile", help="head profile of the model (required for heterocache)")
    parser.add_argument(
        "--fetch-rate", nargs="*", type=float, default=[],
        help="shares of the satellites that each look refills; without it, those that drift",
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
        for policy in given.policies:
            flags = _flags(given.flags) | (_flags(given.hetero_flags) if policy != "full" else {})
            log = given.log_dir / f"{given.name}-{policy}.log" if given.log_dir else None
            rates = given.fetch_rate if policy != "full" else []
            rate = Path(scratch) / "rate"
            rate.write_text("0")
            env = {FETCH_RATE: str(rate)} if rates else None
            flags = {"max_total_tokens": given.max_total_tokens, **flags}
            with dummy_server(model, policy, given.profile, log, env, **flags) as server:
                for case in given.cases:
                    batch, tokens = map(int, case.split("x"))
                    size = (batch, tokens, given.steps, given.rounds)
                    for row in measure(
                        server, *size, rates or [None], lambda r, file=rate: file.write_text(str(r)), policy != "full"
                    ):
                        rows.append(_judged({"policy": policy, **row}, rows))
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


def _judged(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    case = (row["batch"], row["tokens"])
    dense = [r for r in rows if r["policy"] == "full" and (r["batch"], r["tokens"]) == case]
    return row | judge(row, dense[0]) if dense and row["policy"] != "full" else row


def _flags(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


if __name__ == "__main__":
    main()
