"""`hetero-sglang profile ...`: list, show, diff, assign, index, import, export, validate, or a model to calibrate."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hetero_sglang.calibration.calibrate_command import calibrate
from hetero_sglang.calibration.checkpoint import check_profile
from hetero_sglang.calibration.difference import difference
from hetero_sglang.calibration.index_command import index
from hetero_sglang.calibration.role_options import add_role_options, read_role_options
from hetero_sglang.calibration.summary import summary
from hetero_sglang.config.parser import Parser
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile import made_profiles
from hetero_sglang.profile.files import dumps, load_profile, save_profile, shipped, write_text
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.json_file import read_object
from hetero_sglang.profile.reference import MISSING, encode_reference, is_reference

_RATIOS = (0.5, 0.33, 0.25, 0.2)


def run(argv: list[str]) -> int:
    """A first word that is no verb is taken for the checkpoint (write ./show for a folder called show)."""
    if argv and argv[0] in VERBS:
        VERBS[argv[0]](argv[1:])
    else:
        calibrate(argv, ", ".join(VERBS))
    return 0


def list_(argv: list[str]) -> None:
    """Prints the profiles that servers made for themselves, and those that are shipped."""
    Parser("hetero-sglang profile list", "List the profiles that servers made or that are shipped.").parse_args(argv)
    for what, paths in (("made at a start", made_profiles.made()), ("shipped", shipped())):
        for path in paths:
            try:
                profile = load_profile(path)
                told = f"{profile.provenance.get('model') or 'a model'}, {what}, {_counts(profile)}"
            except HeteroError as error:
                told = f"not to be read: {error}"
            print(f"{path}: {told}")
    print(f"Servers keep theirs in {made_profiles.folder()}.")


def show(argv: list[str]) -> None:
    """Prints a summary; with --plot writes pictures."""
    parser = Parser("hetero-sglang profile show", "Print a profile's roles, floor, budgets and clusters.")
    parser.add_argument("file", help="profile (ours or the reference's)")
    parser.add_argument("--keep-ratio", type=float, nargs="+", metavar="R", help="budgets to print")
    parser.add_argument("--plot", metavar="DIR", help="also write PNG heat maps here")
    parser.add_argument("--heads", nargs="+", metavar="LAYER.HEAD", help="heads of the overlap plot")
    args = parser.parse_args(argv)
    profile = load_profile(args.file)
    print(summary(profile, tuple(args.keep_ratio or _RATIOS), strict=args.keep_ratio is not None))
    if args.plot:
        try:
            from hetero_sglang.calibration.plots import plot_all
        except ImportError:
            raise HeteroError("`--plot` needs matplotlib; run `pip install hetero-sglang[plot]`.") from None
        for path in plot_all(profile, args.plot, args.heads):
            print(f"wrote {path}")


def diff(argv: list[str]) -> None:
    """Prints how many heads changed role."""
    parser = Parser("hetero-sglang profile diff", "Count the heads whose role differs between two profiles.")
    parser.add_argument("one")
    parser.add_argument("other")
    args = parser.parse_args(argv)
    print(difference(load_profile(args.one), load_profile(args.other)))


def assign(argv: list[str]) -> None:
    """Decides roles anew from the measurements in a profile; the model is not run."""
    parser = Parser("hetero-sglang profile assign", "Decide roles anew at other thresholds, without the model.")
    parser.add_argument("file")
    parser.add_argument("--out", required=True)
    add_role_options(parser)
    args = parser.parse_args(argv)
    profile = load_profile(args.file)
    options = read_role_options(args, profile.num_kv_heads)
    if profile.measurements is None:
        raise HeteroError(f"{args.file} holds no measurements; profile the model to decide roles anew.")
    layers, about, table = options.decide(profile.measurements, profile.provenance)
    profile = replace(profile, layers=layers, provenance=about)
    save_profile(profile, args.out)
    print(table)
    _wrote(profile, args.out)


def import_(argv: list[str]) -> None:
    """Converts the reference's file to our schema and says what it lacks."""
    parser = Parser("hetero-sglang profile import", "Convert a HeteroCache head file to our schema.")
    parser.add_argument("file")
    parser.add_argument("--out", help="default: FILE with the ending .hetero.json")
    args = parser.parse_args(argv)
    profile = load_profile(args.file)
    if not is_reference(read_object(args.file)):
        raise HeteroError(f"{args.file} is in our schema already; there is nothing to import.")
    # Not with_suffix: their names hold dots of their own.
    target = args.out or str(Path(args.file).parent / (Path(args.file).name.removesuffix(".json") + ".hetero.json"))
    save_profile(profile, target)
    _wrote(profile, target)
    print(f"warning: the file lacks {', '.join(MISSING)}; these cannot be checked or shown.", file=sys.stderr)


def export(argv: list[str]) -> None:
    """Writes the reference's form; measurements and provenance have no place in it."""
    parser = Parser("hetero-sglang profile export", "Write a profile as a HeteroCache head file.")
    parser.add_argument("file")
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    profile = load_profile(args.file)
    write_text(args.out, dumps(encode_reference(profile)))
    _wrote(profile, args.out)


def validate(argv: list[str]) -> None:
    """Reads a profile; with --model compares shape and fingerprint."""
    parser = Parser("hetero-sglang profile validate", "Check a profile, and with --model that it is of that model.")
    parser.add_argument("file")
    parser.add_argument("--model", help="local checkpoint")
    args = parser.parse_args(argv)
    profile = load_profile(args.file)
    if args.model is not None:
        check_profile(profile, args.file, args.model)
    print(f"{args.file} is valid: {_counts(profile)}")


VERBS: dict[str, Callable[[list[str]], None]] = {
    "list": list_,
    "show": show,
    "diff": diff,
    "assign": assign,
    "index": index,
    "import": import_,
    "export": export,
    "validate": validate,
}


def _counts(profile: HeadProfile) -> str:
    return f"{profile.num_resident} of {profile.num_heads} heads resident, floor {profile.floor:.4f}"


def _wrote(profile: HeadProfile, path: str) -> None:
    print(f"wrote {path}: {_counts(profile)}")
