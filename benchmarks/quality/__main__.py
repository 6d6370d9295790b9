"""`python -m benchmarks.quality --out DIR`: what every policy still answers right, at every keep ratio."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.launch import ROOT
from benchmarks.recall import Language
from hetero_sglang.config.choices import POLICIES
from hetero_sglang.errors import HeteroError

from .cell import parse_cells
from .command import guarded, measure
from .host import add_server_flags, parse_flags
from .plots import load_pyplot
from .preset import FULL_SIZE, REDUCED, SERVER_FLAGS, Preset
from .ratios import parse_ratios
from .sample import Sample
from .tasks import TASKS

CHAINS = ROOT / "assets" / "recall-chains-8m"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not finished in DIR, then write aggregate.json, report.md and plots there."""
    return guarded(run, _parser().parse_args(arguments), "samples")


def run(given: argparse.Namespace) -> int:
    """Do what the flags say; 1 if a cell could not be measured. Raises HeteroError for settings that cannot be."""
    preset = REDUCED if given.reduced else FULL_SIZE
    policies = given.policies or preset.policies
    # A model without a profile has no floor, and can still be measured under `full`.
    ratios = [] if set(policies) == {"full"} else parse_ratios(given.ratios or preset.ratios, given.model)
    cells = parse_cells(policies, ratios)
    flags = parse_flags(given.server_flags)
    items = samples(given, preset)
    if not given.no_plots:
        load_pyplot()  # before hours of work, not after them
    return measure(given, cells, items, flags, report=given.report, plots=not given.no_plots)


def samples(given: argparse.Namespace, preset: Preset) -> list[Sample]:
    """Task by task, from short to long. Raises HeteroError for a task that is not there."""
    if unknown := [name for name in given.tasks if name not in TASKS]:
        raise HeteroError(f"Task {unknown[0]!r} is not one of {', '.join(TASKS)}.")
    language = Language.load(given.tokenizer or given.model)
    return [
        Sample(task, length, seed, point, language)
        for task in (TASKS[name] for name in given.tasks)
        for length in sorted(given.lengths or preset.lengths)
        if length >= task.shortest
        for seed in given.seeds or preset.seeds
        for point in (task.reduced if preset.reduced else task.points)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=main.__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the results; finished samples in it are not run again")
    add("--also", nargs="+", type=Path, default=[], metavar="DIR", help="folders whose finished samples count too")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--reduced", action="store_true", help="the whole matrix, small enough for a CPU")
    size.add_argument("--full-size", action="store_true", help="3K to 32K tokens and three seeds (the default)")
    add("--policies", nargs="+", metavar="P", help=f"{', '.join(POLICIES)}; variants as heterocache:retrieval=off")
    add("--ratios", nargs="+", metavar="R", help="keep ratios; floor+0.02 counts from the model's floor")
    add("--tasks", nargs="+", metavar="TASK", default=list(TASKS), help=f"of {', '.join(TASKS)} (default: all)")
    add("--lengths", nargs="+", type=int, metavar="N", help="document lengths in tokens")
    add("--seeds", nargs="+", type=int, metavar="S", help="each is another sample of everything")
    add("--model", default=str(CHAINS), help="folder of the recall model (default: the one that follows chains)")
    add("--tokenizer", help="folder of its tokenizer, if that is another")
    add_server_flags(parser, SERVER_FLAGS)
    add("--list", action="store_true", help="print cells, samples and an estimate, and run nothing")
    add("--report", action="store_true", help="write the report of what is finished, and run nothing")
    add("--no-plots", action="store_true", help="tables alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
