"""`hetero-sglang profile ...`: calibrate a model, or look at, compare and convert profiles."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from hetero_sglang.cli import Parser
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.files import load_profile, save_profile
from hetero_sglang.profile.head_profile import HeadProfile

_RATIOS = (0.5, 0.33, 0.25, 0.2)


def run(argv: list[str]) -> int:
    """Entry of the sub-command; a first word that is no verb is a model to calibrate."""
    if argv and argv[0] in _VERBS:
        return _VERBS[argv[0]](argv[1:])
    from hetero_sglang.profile.calibrate_command import run as calibrate

    return calibrate(argv, ", ".join(_VERBS))


def _show(argv: list[str]) -> int:
    parser = Parser("hetero-sglang profile show", "Print a profile's roles, floor, budgets and clusters.")
    parser.add_argument("file", help="profile (ours or the reference's)")
    parser.add_argument("--keep-ratio", type=float, nargs="+", default=None, metavar="R",
                        help=f"budgets to print (default {' '.join(map(str, _RATIOS))})")  # fmt: skip
    parser.add_argument("--plot", metavar="DIR", help="also write PNG heat maps here")
    parser.add_argument("--heads", nargs="+", default=None, metavar="LAYER.HEAD",
                        help="heads of the overlap plot (default: two of each role)")  # fmt: skip
    args = parser.parse_args(argv)
    from hetero_sglang.profile.summary import summary

    profile = load_profile(args.file)
    print(summary(profile, tuple(args.keep_ratio or _RATIOS), strict=args.keep_ratio is not None))
    if args.plot:
        from hetero_sglang.profile.plots import plot_all

        for path in plot_all(profile, args.plot, args.heads):
            print(f"wrote {path}")
    return 0


def _diff(argv: list[str]) -> int:
    parser = Parser("hetero-sglang profile diff", "Count the heads whose role differs between two profiles.")
    parser.add_argument("one")
    parser.add_argument("other")
    args = parser.parse_args(argv)
    from hetero_sglang.profile.difference import difference

    print(difference(load_profile(args.one), load_profile(args.other)))
    return 0


def _import(argv: list[str]) -> int:
    parser = Parser("hetero-sglang profile import", "Convert a HeteroCache head file to our schema.")
    parser.add_argument("file")
    parser.add_argument("--out", default=None, help="default: FILE with .hetero.json as its ending")
    args = parser.parse_args(argv)
    profile = load_profile(args.file)
    lacks = profile.provenance.get("lacks")
    if lacks is None:
        raise HeteroError(f"{args.file} is in our schema already; there is nothing to import.")
    target = Path(args.out or Path(args.file).with_suffix(".hetero.json"))
    save_profile(profile, target)
    _say(profile, target)
    print(f"warning: the file lacks {', '.join(lacks)}, so these cannot be checked against a model.", file=sys.stderr)
    return 0


def _export(argv: list[str]) -> int:
    parser = Parser("hetero-sglang profile export", "Write a profile as a HeteroCache head file.")
    parser.add_argument("file")
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    from hetero_sglang.profile.files import dumps, write_text
    from hetero_sglang.profile.reference import encode_reference

    profile = load_profile(args.file)
    write_text(args.out, dumps(encode_reference(profile)))
    _say(profile, Path(args.out))
    return 0


def _validate(argv: list[str]) -> int:
    parser = Parser("hetero-sglang profile validate", "Check a profile, and with --model that it is of that model.")
    parser.add_argument("file")
    parser.add_argument("--model", default=None, help="local checkpoint")
    args = parser.parse_args(argv)
    profile = load_profile(args.file)
    if args.model is not None:
        from hetero_sglang.profile.checkpoint import read_shape
        from hetero_sglang.profile.fingerprint import fingerprint

        shape = read_shape(args.model)
        profile.check_model(shape.num_layers, shape.num_query_heads, shape.num_kv_heads, shape.head_dim)
        made_from = profile.provenance.get("fingerprint")
        if made_from not in (None, fingerprint(args.model)):
            raise HeteroError(f"{args.file} was made from other weights than {args.model}; profile this model.")
    print(f"{args.file} is valid: {_counts(profile)}")
    return 0


def _counts(profile: HeadProfile) -> str:
    return f"{profile.num_resident} of {profile.num_heads} heads resident, floor {profile.floor:.4f}"


def _say(profile: HeadProfile, path: Path) -> None:
    print(f"wrote {path}: {_counts(profile)}")


_VERBS: dict[str, Callable[[list[str]], int]] = {
    "show": _show,
    "diff": _diff,
    "import": _import,
    "export": _export,
    "validate": _validate,
}
