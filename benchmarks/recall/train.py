"""`python -m benchmarks.recall.train --out DIR`: train the recall model from scratch and export it."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hetero_sglang.errors import HeteroError

from .language import Language
from .mix import KINDS, Mix
from .mixed_sampler import MixedSampler
from .training.settings import Settings
from .training.shape import Shape

TOKENIZER = Path(__file__).parents[2] / "assets" / "recall-8m"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train on one GPU (or, at tiny sizes, on the CPU), measure, and write a Hugging Face checkpoint with its card."""
    given = _parser().parse_args(arguments)
    command = shlex.join(
        ["python", "-m", "benchmarks.recall.train", *(sys.argv[1:] if arguments is None else arguments)]
    )
    try:
        run(given, command)
    except HeteroError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(given: argparse.Namespace, command: str) -> None:
    """Do what the flags say. Raises HeteroError for settings that cannot be."""
    import torch  # here, so that --help and wrong flags answer at once

    from .training.accuracy import measure
    from .training.export import check_size, export, read_tokenizer
    from .training.model import RecallModel
    from .training.record import Record
    from .training.trainer import Trainer

    language = Language.load(given.tokenizer)
    tokenizer = read_tokenizer(given.tokenizer)
    rows = Shape.rows(language.tokenizer.get_vocab_size())
    shape, mix, settings = (
        Shape(rows, **_part(given, Shape)),
        Mix(**_part(given, Mix)),
        Settings(**_part(given, Settings)),
    )
    check_size(shape, tokenizer, given.max_mib)
    sampler = MixedSampler(language, mix)
    torch.manual_seed(settings.seed)
    model = RecallModel(shape, settings.embedding_std).to(given.device)
    trainer = Trainer(model, sampler, settings, save=lambda: export(given.out, model, tokenizer))
    trainer.log(f"{shape.parameters:,} parameters")
    totals = trainer.train()
    lengths = [int(length) for length in given.eval_lengths.split(",")]
    export(given.out, model, tokenizer)
    accuracy = measure(model, sampler, lengths, given.eval_tokens, settings.seed, settings.batch_tokens)
    cuda = torch.device(given.device).type == "cuda"
    device = f"one {torch.cuda.get_device_name()}" if cuda else "the CPU"
    record = Record(command, shape, mix, settings, totals, accuracy, device)
    record.save(given.out, given.name or Path(given.out).resolve().name)
    for length, kinds in accuracy.items():
        for kind in KINDS:
            shares = [
                f"{part} {_share(getattr(kinds[kind], part))}"
                for part in ("tokens", "names", "numbers", "marks", "answers")
            ]
            trainer.log(f"{length:6d} tokens  {kind:6s}  {'  '.join(shares)}")


def _share(count: Any) -> str:
    return "-" if count.share is None else f"{count.share:.4f}"


def _part(given: argparse.Namespace, of: type) -> dict[str, Any]:
    """The flags that are fields of one settings class."""
    return {each.name: getattr(given, each.name) for each in fields(of) if hasattr(given, each.name)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recall.train",
        description=main.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, help="folder to write; made if it is not there")
    add("--name", help="the model's name in its card; the folder's, if left out")
    add("--tokenizer", default=TOKENIZER, help="folder with the language's tokenizer; its files are copied")
    add("--device", default="cuda", help="where to train")
    add("--max-mib", type=float, default=16.0, help="refuse a shape whose checkpoint would be larger")
    add("--eval-lengths", default="256,1024,4096,8192,16384,32768", help="sample lengths to measure accuracy at")
    add("--eval-tokens", type=int, default=1 << 20, help="about how many tokens to measure on, per length")
    model = parser.add_argument_group("model").add_argument
    model("--layers", type=int, default=Shape.layers, help="layers")
    model("--query-heads", type=int, default=Shape.query_heads, help="query heads per layer, of size 64")
    model("--kv-heads", type=int, default=Shape.kv_heads, help="KV heads per layer")
    model("--width", type=int, default=Shape.width, help="hidden size")
    model("--ffn", type=int, default=Shape.ffn, help="inner size of the MLPs")
    data = parser.add_argument_group("data").add_argument
    data("--plain", type=float, default=Mix.plain, help="share of questions about plain entries")
    data("--chain", type=float, default=Mix.chain, help="share of questions that follow a chain")
    data("--update", type=float, default=Mix.update, help="share of questions about restated entries")
    data("--long", type=float, default=Mix.long, help="share of list questions with 9 to 64 names, where they fit")
    data("--dense", type=float, default=Mix.dense, help="share of samples with entries in one short stretch")
    data("--workers", type=int, default=Settings.workers, help="processes that draw samples; 0: none but this one")
    train = parser.add_argument_group("training").add_argument
    train("--minutes", type=float, default=Settings.minutes, help="training time, without compilation and measuring")
    train("--steps", type=int, help="train this many steps, however long they take")
    train("--stages", default=Settings.stages, help="sample lengths in turn, and the share of the training for each")
    train("--batch-tokens", type=int, default=Settings.batch_tokens, help="tokens per step")
    train("--rate", type=float, default=Settings.rate, help="peak learning rate")
    train("--warmup", type=int, default=Settings.warmup, help="warm-up steps")
    train("--weight-decay", type=float, default=Settings.weight_decay, help="weight decay of matrices")
    train("--embedding-std", type=float, default=Settings.embedding_std, help="initial embeddings' standard deviation")
    train(
        "--stop-below", type=float, default=Settings.stop_below, help="answer accuracy at 1K or more to give up below"
    )
    train("--seed", type=int, default=Settings.seed, help="of initial weights and data")
    train("--compile", action=argparse.BooleanOptionalAction, default=Settings.compile, help="compile on a GPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
