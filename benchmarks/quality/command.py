"""What the benchmark's command lines do alike: measure a matrix, and end without a trace when that cannot be."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import run_information
from hetero_sglang.errors import HeteroError

from .cell import Cell
from .estimate import listing
from .host import Host, Running
from .matrix import Item, Matrix
from .outcome import write
from .servers import Servers
from .store import Record, Store, read


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

    1 if a cell could not be measured. Raises HeteroError as `choose`, `read` and `write` do.
    """
    if given.jobs < 1:
        raise HeteroError(f"--jobs {given.jobs}: pass 1 or more.")
    others = {folder: read(folder) for folder in given.also}
    # Of two records with one key the folder named first has the word.
    store = Store(given.out, {key: record for each in reversed(others.values()) for key, record in each.items()})
    try:
        matrix = Matrix(cells, items, store, given.model, flags)
        _tell(matrix, others)
        if given.list:
            print(listing(matrix, given.jobs))
            return 0
        information = run_information()
        if not report:
            host = choose(given.url, given.model, flags, store.folder / "logs", cells, given.jobs)
            matrix.run(host, information["commit"], given.jobs)
        write(matrix, information, plots)
    finally:
        store.close()
    return 1 if matrix.failures else 0


def choose(
    url: str | None, model: str, flags: dict[str, Any], logs: Path, cells: Sequence[Cell], jobs: int = 1
) -> Host:
    """The server at `url`, or one per cell. Raises HeteroError for more than one cell or job at one address."""
    if url is None:
        return Servers(model, flags, logs, jobs)
    if len(cells) > 1:
        raise HeteroError(f"{len(cells)} cells for one server: with --url name one policy and one ratio.")
    if jobs > 1:
        raise HeteroError(f"{jobs} jobs for one server: leave out --jobs or --url.")
    return Running(url)


def _tell(matrix: Matrix, others: dict[Path, dict[str, Record]]) -> None:
    """How much of each folder is used: other flags, another model or other tasks make other keys."""
    keys = {record["key"] for record in matrix.finished()} if others else set()
    for folder, records in others.items():
        print(f"{folder}: {len(keys & records.keys())} of {len(records)} samples are of this matrix")
