"""The options that say which text a model reads and where it runs, shared by calibration and `index`."""

import argparse
import sys

from tqdm import tqdm

from hetero_sglang.calibration.checkpoint import Checkpoint, Shape
from hetero_sglang.calibration.documents import Document, built_in, from_file
from hetero_sglang.errors import HeteroError

DEFAULT_LENGTHS = (2048, 4096)
BUILT_IN_LENGTHS = (4096, 4096, 2048)  # as long as lets calibration be done in two minutes on two cores


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options; `read_documents` and `progress` read them."""
    add = parser.add_argument
    add("--text", nargs="+", default=[], metavar="FILE", help="UTF-8 calibration texts (default: built-in text)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)")
    add("--length", type=int, nargs="+", help="in tokens (default 2048 4096; of built-in text 4096 4096 2048)")
    add("--documents", type=int, default=3, help="built-in documents (default %(default)s)")
    add("--seed", type=int, default=0, help="seed of the first built-in document (default %(default)s)")
    add("--quiet", action="store_true", help="no progress bar")


def read_documents(args: argparse.Namespace, checkpoint: Checkpoint, shape: Shape) -> list[Document]:
    """Those of the files, else built-in ones of consecutive seeds.

    Raises HeteroError for unusable files and for lengths beyond the model's context."""
    room = shape.max_length
    lengths = args.length or [min(n, room) for n in (DEFAULT_LENGTHS if args.text else BUILT_IN_LENGTHS)]
    for length in lengths:
        if not 0 < length <= room:
            raise HeteroError(f"`--length` {length} does not fit this model; choose between 1 and {room} tokens.")
    encode, start = checkpoint.encode, checkpoint.start
    if args.text:
        return [document for path in args.text for document in from_file(path, lengths, encode, start)]
    if args.documents < 1:
        raise HeteroError(f"`--documents` is {args.documents}; choose at least 1.")
    return [built_in(args.seed + i, lengths[i % len(lengths)], encode, checkpoint.chat) for i in range(args.documents)]


def progress(args: argparse.Namespace, documents: list[Document]) -> tqdm:
    """A bar of the documents' tokens; warns on stderr where no text was given."""
    if not args.text:
        warn_of_built_in()
    return bar(sum(len(document.tokens) for document in documents), f"{len(documents)} documents", args.quiet)


def warn_of_built_in() -> None:
    """On stderr, where no text was given."""
    warning = "warning: calibrating on built-in text; text of your own fits your use better (--text FILE)."
    print(warning, file=sys.stderr)


def bar(total: int, label: str, quiet: bool) -> tqdm:
    """A progress bar."""
    bar_format = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left{postfix}"
    return tqdm(total=total, desc=label, disable=quiet, mininterval=0.5, bar_format=bar_format)
