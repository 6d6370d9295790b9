"""What the benchmark's command lines do alike: measure a matrix, and end without a trace when that cannot be."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.results import run_information
from hetero_sglang.errors import HeteroError

from .cell import Cell
from .estimate import listing
from .host import choose
from .matrix import Item, Matrix
from .outcome import write
from .store import Store


def guarded(run: Callable[[argparse.Namespace], int], given: argparse.Namespace, items: str) -> int:
    """The exit status of `run`; 2 after one sentence for settings that cannot be, 130 for a run that was stopped."""
    try:
        return run(given)
    except HeteroError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; finished {items} are in {given.out}, the same command goes on from there", file=sys.stderr)
        return 130


def measure(
    given: argparse.Namespace,
    cells: Sequence[Cell],
    items: Sequence[Item],
    flags: dict[str, Any],
    *,
    report: bool = False,
    plots: bool = False,
) -> int:
    """Run what is not finished (unless `report`) and write what is, or print the list that --list asks for.

    1 if a cell could not be measured. Raises HeteroError as `choose` and `write` do.
    """
    store = Store(given.out)
    try:
        matrix = Matrix(cells, items, store, given.model, flags)
        if given.list:
            print(listing(matrix))
            return 0
        information = run_information()
        if not report:
            host = choose(given.url, given.model, flags, store.folder / "logs", cells)
            matrix.run(host, information["commit"])
        write(matrix, information, plots)
    finally:
        store.close()
    return 1 if matrix.failures else 0
