"""`python -m benchmarks.quality.files`: score policies on RULER-style or LongBench-style files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import run_information
from hetero_sglang.choices import POLICIES
from hetero_sglang.errors import HeteroError

from ..cell import parse_cells
from ..estimate import listing
from ..host import add_server_flags, choose, parse_flags
from ..matrix import Matrix
from ..outcome import write
from ..ratios import parse_ratios
from ..store import Store
from .cut import cutter
from .item import FileItem
from .lines import read_lines
from .longbench import longbench_prompt
from .ruler import ruler_prompt

FORMATS = {"ruler": ruler_prompt, "longbench": longbench_prompt}


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask every line of the files under every policy, then write aggregate.json and report.md."""
    given = _parser().parse_args(arguments)
    try:
        return run(given)
    except HeteroError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; finished lines are in {given.out}, the same command goes on from there", file=sys.stderr)
        return 130


def run(given: argparse.Namespace) -> int:
    """Do what the flags say; 1 if a cell could not be measured. Raises HeteroError for settings that cannot be."""
    cells = parse_cells(given.policies, parse_ratios(given.ratios, given.model))
    flags = parse_flags(given.server_flags)
    lines = items(given)
    store = Store(given.out)
    try:
        matrix = Matrix(cells, lines, store, given.model, flags)
        if given.list:
            print(listing(matrix))
            return 0
        information = run_information()
        matrix.run(choose(given.url, given.model, flags, store.folder / "logs", cells), information["commit"])
        write(matrix, information, plots=False)
    finally:
        store.close()
    return 1 if matrix.failures else 0


def items(given: argparse.Namespace) -> list[FileItem]:
    """The lines of all files. Raises HeteroError for a file or line that cannot be used."""
    cut = cutter(given.model, given.max_prompt_tokens)
    found: list[FileItem] = []
    for path in given.data:
        prompts = [(line, FORMATS[given.format](line)) for line in read_lines(path)]
        for line, prompt in prompts[: given.limit]:
            answer_tokens = given.max_new_tokens or prompt.answer_tokens
            found.append(FileItem(line, prompt, cut(prompt.text), answer_tokens, given.chat))
    if not found:
        raise HeteroError("The files given with --data have no lines.")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.files", description=main.__doc__)
    add = parser.add_argument
    add("--format", choices=list(FORMATS), required=True, help="what the files' fields are")
    add("--data", nargs="+", type=Path, required=True, metavar="FILE", help="JSON lines")
    add("--out", type=Path, required=True, help="folder of the results; finished lines in it are not run again")
    add("--model", required=True, help="checkpoint, a folder or a name")
    add("--policies", nargs="+", metavar="P", default=["full", "heterocache"], help=f"of {', '.join(POLICIES)}")
    add("--ratios", nargs="+", metavar="R", default=["0.5"], help="keep ratios (default: 0.5)")
    add("--limit", type=int, metavar="N", help="the first N lines of each file")
    add("--max-prompt-tokens", type=int, metavar="N", help="cut longer prompts in their middle")
    add("--max-new-tokens", type=int, metavar="N", help="longest answer (default: the format's own)")
    add("--chat", action="store_true", help="send prompts as chat messages")
    add_server_flags(parser, "")
    add("--list", action="store_true", help="print cells, lines and an estimate, and run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
