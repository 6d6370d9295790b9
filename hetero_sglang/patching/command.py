"""`hetero-sglang patch {check,apply,revert} [PATH]`."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from hetero_sglang.config.parser import Parser
from hetero_sglang.errors import HeteroError
from hetero_sglang.patching.tree import State, Tree
from hetero_sglang.sglang.version import TESTED


def run(argv: list[str]) -> int:
    """Does one of them and prints a sentence. Raises HeteroError for a tree that it has to leave alone."""
    parser = Parser(
        "hetero-sglang patch", f"Put hetero_sglang into the source of SGLang {' or '.join(TESTED)}, or take it out."
    )
    parser.add_argument("what", choices=VERBS)
    parser.add_argument(
        "path", nargs="?", type=Path, help="the folder that holds the package sglang; default: the installed one's"
    )
    args = parser.parse_args(argv)
    print(VERBS[args.what](Tree(args.path or installed())))
    return 0


def installed() -> Path:
    """The folder that holds the package Python would import. Raises HeteroError where there is none."""
    found = importlib.util.find_spec("sglang")
    if found is None or found.origin is None:
        raise HeteroError("no package sglang is installed; name the folder of SGLang's.")
    return Path(found.origin).parents[1]


def check(tree: Tree) -> str:
    """Whether it is as released or patched. Raises HeteroError where it is neither."""
    state, _ = found = tree.state()
    if state in (State.INTERRUPTED, State.OTHER):
        raise HeteroError(tree.refusal(*found))
    return f"{tree.root} is SGLang {tree.release}, {state.value}."


def apply(tree: Tree) -> str:
    """Says how many files are patched."""
    return f"{tree.apply()} files of {tree.root} are patched; `hetero-sglang patch revert` puts back what they were."


def revert(tree: Tree) -> str:
    """Says how many files are put back."""
    return f"{tree.revert()} files of {tree.root} are as SGLang {tree.release} was released."


VERBS: dict[str, Callable[[Tree], str]] = {"check": check, "apply": apply, "revert": revert}
