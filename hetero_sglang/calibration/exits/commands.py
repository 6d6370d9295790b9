"""`hetero-sglang exits ...`: train the branches of a model, or show those in a file."""

from collections.abc import Callable

from hetero_sglang.calibration.exits.show_command import show
from hetero_sglang.calibration.exits.train_command import train
from hetero_sglang.errors import HeteroError

VERBS: dict[str, Callable[[list[str]], int]] = {"train": train, "show": show}
_USAGE = """usage: hetero-sglang exits train MODEL --text FILE ... --out FILE
       hetero-sglang exits show FILE

`hetero-sglang exits train --help` says more."""


def run(argv: list[str]) -> int:
    """Runs a verb; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if argv else 2
    if argv[0] not in VERBS:
        raise HeteroError(f"`hetero-sglang exits` has no verb {argv[0]!r}; choose one of {', '.join(VERBS)}.")
    return VERBS[argv[0]](argv[1:])
