"""The options that say which text a model reads and where it runs, shared by calibration and `index`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hetero_sglang.calibration.source import Source


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options; read them back with `read_text_options`."""
    add = parser.add_argument
    add(
        "--text",
        nargs="+",
        default=[],
        metavar="FILE",
        help="UTF-8 calibration texts (default: built-in text)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)")
    add("--length", type=int, nargs="+", help="prompt lengths in tokens (default 2048 4096)")
    add("--documents", type=int, default=8, help="built-in documents (default %(default)s)")
    add("--seed", type=int, default=0, help="seed of the first built-in document (default %(default)s)")
    add("--quiet", action="store_true", help="no progress bar")


def read_text_options(args: argparse.Namespace) -> Source:
    """The source of documents; nothing is read yet."""
    from hetero_sglang.calibration.source import Source

    return Source(tuple(args.text), args.length and tuple(args.length), args.documents, args.seed)


def warn_of_built_in_text(args: argparse.Namespace) -> None:
    """On stderr, where no text was given."""
    if not args.text:
        warning = "warning: calibrating on built-in text; text of your own fits your use better (--text FILE)."
        print(warning, file=sys.stderr)
