"""`hetero-sglang exits train MODEL`: train branches, calibrate their thresholds, write the early-exit file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetero_sglang.calibration.chats import SUFFIX, from_chats
from hetero_sglang.calibration.checkpoint import Checkpoint, open_checkpoint, read_shape, tokenizer_hash
from hetero_sglang.calibration.documents import Document, built_in, from_file
from hetero_sglang.calibration.exits.options import Options, Size, add_options, read_options
from hetero_sglang.calibration.exits.windows import cut
from hetero_sglang.calibration.exits.work_folder import WorkFolder
from hetero_sglang.calibration.text_options import warn_of_built_in
from hetero_sglang.calibration.versions import versions
from hetero_sglang.config.parser import Parser
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.fingerprint import fingerprint, read_config
from hetero_sglang.profile.local_model import local_folder

_WHOLE = 1 << 62  # tokens: no text is cut
_BUILT_IN = 4096  # tokens of a built-in text


def train(argv: list[str]) -> int:
    """Trains; whatever can be refused without the model is refused before it is loaded. Returns the exit code."""
    args = _parser().parse_args(argv)
    model = local_folder(args.model) or args.model
    room = read_shape(model).max_length
    size = Size.of(read_config(model))
    options = read_options(args, size, room)
    if args.held_out and not args.text:
        raise HeteroError("`--held-out` is given without `--text`; give texts to train on.")

    # torch and transformers take seconds to import.
    from hetero_sglang.calibration.exits.distil import distil
    from hetero_sglang.calibration.exits.report import report
    from hetero_sglang.calibration.exits.show_command import write_plot
    from hetero_sglang.calibration.peak_memory import PeakMemory
    from hetero_sglang.exits.files import check_place, load, save

    check_place(args.out)
    checkpoint = open_checkpoint(model, args.device)
    texts, held_out = _texts(args, options, checkpoint, room)
    windows = cut(texts, held_out, checkpoint.start, options.length, options.tokens)
    about = _provenance(model, checkpoint, texts, held_out)
    folder = WorkFolder(
        Path(args.work or Path(args.out).with_suffix(".work")),
        [about["fingerprint"], about["dtype"], about["device"], options.layers, windows.digest],
        [options.about],
    )
    peak = PeakMemory(checkpoint.device)
    try:
        exits = distil(checkpoint, size, options, windows, folder, about, args.quiet)
    except KeyboardInterrupt:
        print("\nhetero-sglang: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    print(f"peak memory beyond the weights: {peak.beyond() / 1e6:.0f} MB ({checkpoint.device})")
    save(exits, args.out)
    exits = load(args.out, model)
    print(report(exits))
    print(f"wrote {args.out}")
    if args.work is None:
        folder.remove()
    if args.plot:
        write_plot(exits, args.plot)
    return 0


def _provenance(
    model: Path | str, checkpoint: Checkpoint, texts: Sequence[Document], held_out: Sequence[Document]
) -> dict[str, Any]:
    """Model and texts; no dates, so that the same run gives the same file."""
    return {
        "model": Path(model).resolve().name,
        "fingerprint": fingerprint(model),
        "tokenizer": tokenizer_hash(model),
        "texts": [text.about for text in texts],
        "held_out": [text.about for text in held_out],
        "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        "device": checkpoint.device.type,
        "versions": versions(),
    }


def _texts(
    args: argparse.Namespace, options: Options, checkpoint: Checkpoint, room: int
) -> tuple[Sequence[Document], Sequence[Document]]:
    if args.text:
        texts, held_out = (
            [text for path in paths for text in _read(path, checkpoint)] for paths in (args.text, args.held_out)
        )
        return texts, held_out
    warn_of_built_in()
    length = min(_BUILT_IN, room)
    count = -(-options.tokens * 4 // 3 // length)
    return [built_in(args.seed + i, length, checkpoint.encode, checkpoint.chat) for i in range(count)], []


def _read(path: str, checkpoint: Checkpoint) -> list[Document]:
    if Path(path).suffix == SUFFIX:
        return [from_chats(path, checkpoint)]
    return from_file(path, [_WHOLE], checkpoint.encode, [])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "hetero-sglang exits train",
        "Train branches by which easy tokens leave a model early, from the model's own last layer.",
    )
    add = parser.add_argument
    add("model", help="local Hugging Face checkpoint (docs/models.md)")
    add("--out", required=True, metavar="FILE", help="early-exit file to write, .json; its tensors come beside it")
    add("--text", nargs="+", default=[], metavar="FILE",
        help="UTF-8 texts to train on, or chats as JSON lines (.jsonl) (default: built-in text)")  # fmt: skip
    add("--held-out", nargs="+", default=[], metavar="FILE",
        help="UTF-8 texts for thresholds (default: the last quarter of each text)")  # fmt: skip
    add("--tokens", type=int, default=65536, help="most tokens to train on, and a third of it held out "
        "(default %(default)s)")  # fmt: skip
    add("--length", type=int, help="tokens that the model reads at once (default 1024)")
    add_options(parser)
    add("--seed", type=int, default=0, help="of the tokens' order, and of the first built-in text (default 0)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default %(default)s)")
    add("--work", metavar="DIR",
        help="folder for what a later run goes on with, to stay (default: beside FILE, removed at the end)",
    )  # fmt: skip
    add("--plot", metavar="FILE", help="also write a picture, .svg or .png")
    add("--quiet", action="store_true", help="no progress bars")
    return parser
