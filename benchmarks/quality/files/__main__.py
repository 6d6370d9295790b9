"""`python -m benchmarks.quality.files`: score policies on RULER-style or LongBench-style files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hetero_sglang.config.choices import POLICIES
from hetero_sglang.errors import HeteroError

from ..cell import parse_cells
from ..command import guarded, measure
from ..host import add_server_flags, parse_flags
from ..ratios import parse_ratios
from .cut import cutter
from .item import FileItem
from .lines import read_lines
from .longbench import longbench_prompt
from .ruler import ruler_prompt

FORMATS = {"ruler": ruler_prompt, "longbench": longbench_prompt}


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask every line of the files under every policy, then write aggregate.json and report.md."""
    return guarded(run, _parser().parse_args(arguments), "lines")


def run(given: argparse.Namespace) -> int:
    """Do what the flags say; 1 if a cell could not be measured. Raises HeteroError for settings that cannot be."""
    cells = parse_cells(given.policies, parse_ratios(given.ratios, given.model))
    flags = parse_flags(given.server_flags)
    return measure(given, cells, items(given), flags)


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
    add("--also", nargs="+", type=Path, default=[], metavar="DIR", help="folders whose finished lines count too")
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
