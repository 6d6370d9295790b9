"""Command line: which faults, how often, and a table of what became of their promises."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import results
from benchmarks.faults.load import Load
from benchmarks.faults.running import RUNNING, Running
from benchmarks.faults.starts import STARTS, Starts
from benchmarks.faults.tally import Tally
from benchmarks.launch import RECALL
from benchmarks.recall import Language

NAME = "faults"


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the faults, keep a row for each in results/faults.json; exit code 1 where a promise was broken."""
    given = make_parser().parse_args(arguments)
    path, information, broken = results.FOLDER / f"{NAME}.json", results.run_information(), 0
    with tempfile.TemporaryDirectory() as scratch:
        load = Load(Language.load(RECALL))

        def keep(name: str, tally: Tally) -> None:
            results.put(path, {"name": name, **information, **tally.as_dict()})

        if chosen := [name for name in RUNNING if name in given.fault]:
            with Running(load, Path(scratch), given.log) as running:
                for name in chosen:
                    tally = running.do(name, given.times)
                    keep(name, tally)
                    print(line(name, tally), flush=True)
                    broken += tally.times - tally.held
        starts, begun = Starts(load, Path(scratch), given.log), time.monotonic()
        tallies = {name: Tally() for name in STARTS if name in given.fault}
        for name in list(tallies) * given.times:  # in turn, so that each has had some when time runs out
            if time.monotonic() - begun < given.limit:
                starts.once(name, tallies[name])
                keep(name, tallies[name])
        for name, tally in tallies.items():
            print(line(name, tally), flush=True)
            broken += tally.times - tally.held
    print("saved", path)
    sys.exit(1 if broken else 0)


def line(name: str, tally: Tally) -> str:
    """One row of the table."""
    text = (
        f"{name:<22} held {tally.held} of {tally.times}: {tally.requests} requests, {tally.answered} answered, "
        f"{tally.wrong} wrong, {tally.hung} hung, {tally.leaks} leaks, at most {tally.worst_seconds:g} s; "
        f"{dict(tally.failures)}"
    )
    return "\n".join([text, *(f"  BROKEN, {sentence}" for sentence in tally.said)])


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    add, names = parser.add_argument, [*RUNNING, *STARTS]
    add("--fault", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {', '.join(names)} (all)")
    add("--times", type=int, default=20, help="each (20)")
    add("--limit", type=float, default=math.inf, metavar="SECONDS", help="make no more starts then (no limit)")
    add("--log", type=Path, metavar="FILE", help="of the latest server")
    return parser
