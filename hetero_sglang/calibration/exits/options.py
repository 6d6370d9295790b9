"""What `exits train` is asked for: which branches, and how they are trained."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.branch import KINDS
from hetero_sglang.exits.confidence import MEASURES
from hetero_sglang.profile.json_file import is_whole

RANK, WORDS = 64, 4096
_PLACES = (0.6, 0.8, 0.9)  # of all layers, where branches stand unless said otherwise
_SIZES = ("num_hidden_layers", "hidden_size", "vocab_size")


@dataclass(frozen=True)
class Size:
    """Of a model: layers, hidden dimensions, words."""

    layers: int
    hidden: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Size":
        """Raises HeteroError for a configuration without them, and for a model too small to leave early."""
        found = [config.get(name) for name in _SIZES]
        for name, value in zip(_SIZES, found, strict=True):
            if not is_whole(value) or value < 2:
                raise HeteroError(f"the configuration's `{name}` is {value!r}; branches need a whole number above 1.")
        return cls(*found)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Options:
    """Of branches: `layers` that have run, kind, rank (adapter) and words (frequent).
    Of training: steps of `batch` tokens, the seed of their order. Of text: tokens in a window, and for training."""

    layers: tuple[int, ...]
    kind: str
    rank: int
    words: int
    confidence: str
    steps: int
    batch: int
    rate: float
    seed: int
    length: int
    tokens: int

    @property
    def about(self) -> dict[str, Any]:
        """As provenance has it."""
        return {**asdict(self), "layers": list(self.layers)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options; read them back with `read_options`."""
    add = parser.add_argument
    add("--layers", type=int, nargs="+", metavar="N",
        help="how many layers have run where a branch stands (default: 0.6, 0.8 and 0.9 of all)")  # fmt: skip
    add("--branch", choices=KINDS, default="frequent",
        help="adapter: low-rank, before the model's own head; head: one of its own; frequent: one of its own that "
        "knows the most frequent words alone (default %(default)s)")  # fmt: skip
    add("--rank", type=int, help=f"of adapters (default {RANK})")
    add("--words", type=int,
        help=f"how many words a frequent branch knows (default {WORDS})")  # fmt: skip
    add("--confidence", choices=sorted(MEASURES), default="probability",
        help="what thresholds are compared with (default %(default)s)")  # fmt: skip
    add("--steps", type=int, default=1000, help="of training (default %(default)s)")
    add("--batch", type=int, default=256, help="tokens in a step (default %(default)s)")
    add("--rate", type=float, default=1e-3, help="highest learning rate (default %(default)s)")


def read_options(args: argparse.Namespace, size: Size, room: int) -> Options:
    """The options for a model of this size with `room` positions. Raises HeteroError for impossible ones."""
    layers = tuple(args.layers or sorted({min(max(1, round(p * size.layers)), size.layers - 1) for p in _PLACES}))
    if list(layers) != sorted(set(layers)) or not 1 <= layers[0] <= layers[-1] < size.layers:
        raise HeteroError(
            f"`--layers` is {' '.join(map(str, layers))}; list numbers between 1 and {size.layers - 1}, ascending."
        )
    rank, words = (args.rank or min(RANK, size.hidden)), (args.words or min(WORDS, size.vocabulary - 1))
    length = args.length or min(1024, room)
    for option, value, least, most in (
        ("--rank", rank, 1, size.hidden),
        ("--words", words, 2, size.vocabulary - 1),
        ("--steps", args.steps, 1, 10**7),
        ("--batch", args.batch, 1, 10**6),
        ("--length", length, 64, room),
        ("--tokens", args.tokens, 1024, 10**12),
    ):
        if not least <= value <= most:
            raise HeteroError(f"`{option}` is {value}; choose between {least} and {most}.")
    if not 0.0 < args.rate <= 1.0:
        raise HeteroError(f"`--rate` is {args.rate:g}; choose a learning rate above 0 and at most 1.")
    return Options(
        layers, args.branch, rank, words, args.confidence, args.steps, args.batch, args.rate, args.seed, length,
        args.tokens,
    )  # fmt: skip
