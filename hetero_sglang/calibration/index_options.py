"""The options that decide what a key index is like, shared by calibration and `index`."""

import argparse
import re
from dataclasses import dataclass

from hetero_sglang.calibration.checkpoint import Shape
from hetero_sglang.calibration.index import DEFAULT_FIELDS, fit_fields
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.index_file import text_bytes
from hetero_sglang.profile.index_plan import RUNS, Fields, check_fields, directions_of
from hetero_sglang.profile.json_file import MOST_BYTES


@dataclass(frozen=True)
class IndexOptions:
    """Directions and bits, neighbouring tokens that come together (None: to be found), positions of keys, and which
    heads find rows in all steps: all, or auto: each in as few as its output needs, and some without an index."""

    fields: Fields
    run: int | None
    context: int
    heads: str = "auto"


def add_index_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options; read them back with `read_index_options`."""
    add = parser.add_argument
    default = " ".join(f"{count}x{bits}" for count, bits in DEFAULT_FIELDS)
    add("--index-fields", nargs="+", metavar="NxB",
        help=f"key index: N directions in B bits each (1, 2 or 4), widest first (default {default})")  # fmt: skip
    add("--index-run", default="auto", metavar="N",
        help="neighbouring tokens that come and go together: 1, 4, 8, or auto: the most by which a layer loses little "
        "(default %(default)s)",
    )  # fmt: skip
    add("--index-heads", choices=["auto", "all"], default="auto",
        help="heads that find rows in every step: all, or auto: a layer's in as few as their outputs need, and a "
        "head that needs none has no index (default %(default)s)")  # fmt: skip
    add("--index-context", type=int, metavar="N",
        help="tokens of the longest request that the key index is for (default: all positions of the model)",
    )  # fmt: skip


def read_index_options(args: argparse.Namespace, shape: Shape) -> IndexOptions:
    """The options, default fields cut to what the model's heads have. Raises HeteroError for impossible ones, and for
    more than a file holds."""
    context = shape.max_length if args.index_context is None else args.index_context
    if not 0 < context <= shape.max_length:
        raise HeteroError(f"`--index-context` is {context}; choose between 1 and {shape.max_length}, the model's own.")
    runs = {"auto": None} | {str(run): run for run in RUNS}
    if args.index_run not in runs:
        raise HeteroError(f"`--index-run` is {args.index_run}; choose one of {', '.join(runs)}.")
    fields = _fields(args.index_fields, shape.head_dim)
    size = text_bytes(shape.num_layers, shape.num_kv_heads, shape.head_dim, fields)
    if size > 0.9 * MOST_BYTES:  # the rest is for measurements
        raise HeteroError(
            f"an index of {directions_of(fields)} directions of {shape.num_layers * shape.num_kv_heads} heads takes "
            f"{size} bytes of a profile of at most {MOST_BYTES}; list fewer with `--index-fields`."
        )
    return IndexOptions(fields, runs[args.index_run], context, args.index_heads)


def _fields(texts: list[str] | None, head_dim: int) -> Fields:
    if texts is None:
        return fit_fields(DEFAULT_FIELDS, head_dim)
    fields = []
    for text in texts:
        found = re.fullmatch(r"(\d{1,6})x(\d{1,2})", text, re.ASCII)
        if found is None:
            raise HeteroError(f"`--index-fields` has {text!r}; write directions and bits as in 24x2.")
        fields.append((int(found[1]), int(found[2])))
    check_fields(fields)
    if (count := directions_of(fields)) > head_dim:
        raise HeteroError(
            f"`--index-fields` lists {count} directions and this model's heads have {head_dim}; list less."
        )
    return tuple(fields)
