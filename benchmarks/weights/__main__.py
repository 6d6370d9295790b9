"""Quantised weights under plain SGLang and under ours, a server of each beside the other: the recall model in every
format, quantised on the spot, with the head profile that ours makes of it at its first start.

Answers are compared where nothing is compressed. On a GPU the two attend with other kernels, so an answer that hangs on
the last bits of a logit is counted apart: one is firm if no next best token ever came nearer than a quarter. Then
entries of long documents are asked for, with half of the rows on the GPU."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.launch import RECALL
from benchmarks.run import Run, add_log_option, add_options
from benchmarks.weights.compare import CASES, DEFAULT, checkpoint, measured
from hetero_sglang.errors import HeteroError


def words(given: list[str]) -> dict[str, Any]:
    """Server flags of NAME=VALUE and bare NAME words."""
    return {name: value if sign else True for name, sign, value in (word.partition("=") for word in given)}


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    if "error" in row:
        return f"{row['format']:<18}not served: {row['error']}"
    plain, ours = row["recall_plain"], row["recall_ours"]
    return (
        f"{row['format']:<18}{row['identical']:>3} of {row['requests']} answers identical, of the firm "
        f"{row['firm_identical']} of {row['firm']}; recall {plain['right']} of {plain['total']} plain, "
        f"{ours['right']} ours"
    )


def main() -> None:
    """A table, and JSON in results/weights.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__)
    parser.add_argument("--formats", nargs="+", choices=CASES, default=list(DEFAULT), metavar="F",
                        help=f"of {', '.join(CASES)} (default: {' '.join(DEFAULT)})")  # fmt: skip
    parser.add_argument("--requests", type=int, default=40, help="that are compared (default: 40)")
    parser.add_argument("--documents", type=int, default=8, help="whose entries are asked for (default: 8)")
    parser.add_argument("--flags", nargs="*", default=[], metavar="NAME=VALUE", help="of both servers")
    add_options(parser, "weights")
    add_log_option(parser)
    given = parser.parse_args()
    with Run(given, model=RECALL.name, flags=given.flags) as run, tempfile.TemporaryDirectory() as folder:
        for name in given.formats:
            run.does(f"{name}: the servers' start")
            model, flags = checkpoint(name, Path(folder)), {**CASES[name][1], **words(given.flags)}
            logs = {kind: run.log(name, kind) for kind in ("plain", "ours")}
            try:
                row = measured(model, flags, given.requests, given.documents, logs, run.does)
            except (RuntimeError, OSError, HeteroError) as error:  # OSError: it ended while it was asked
                row = {"error": str(error)}
            print(line(run.keep({"format": name, **row})), flush=True)
    print("saved", run.save())


if __name__ == "__main__":
    main()
