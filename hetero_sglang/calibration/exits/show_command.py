"""`hetero-sglang exits show FILE`: what branches are in a file, and what they do."""

from hetero_sglang.calibration.exits.report import report
from hetero_sglang.config.parser import Parser
from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.exits import Exits
from hetero_sglang.exits.files import load
from hetero_sglang.profile.local_model import local_folder


def show(argv: list[str]) -> int:
    """Prints the report; with --plot writes a picture, with --model checks that the branches are of that model."""
    parser = Parser("hetero-sglang exits show", "Print branches, and what an agreement with full depth costs.")
    parser.add_argument("file", help="early-exit file")
    parser.add_argument("--model", help="local checkpoint that the branches must be of")
    parser.add_argument("--plot", metavar="FILE", help="also write a picture, .svg or .png")
    args = parser.parse_args(argv)
    exits = load(args.file, None if args.model is None else local_folder(args.model) or args.model)
    print(report(exits))
    if args.plot:
        write_plot(exits, args.plot)
    return 0


def write_plot(exits: Exits, path: str) -> None:
    """Raises HeteroError where there is no matplotlib, and as `plot` does."""
    try:
        from hetero_sglang.calibration.exits.plot import plot
    except ImportError:
        raise HeteroError("`--plot` needs matplotlib; run `pip install hetero-sglang[plot]`.") from None
    plot(exits, path)
    print(f"wrote {path}")
