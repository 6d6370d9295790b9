"""`python -m benchmarks.navigation.train --out DIR`: train the navigation model from scratch and export it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.recall.training.settings import Settings
from benchmarks.recall.training.shape import Shape
from hetero_sglang.errors import HeteroError, ending_the_process

from .layout import LAYOUTS

STAGES = "0:10,1:8,2:14,4:20,6:48"  # rooms a side (0: turns that stand alone), and the share of the training
EVALUATION_SEED = 5000  # worlds of the evaluation after training; those of the benchmark are below


def main(arguments: Sequence[str] | None = None) -> None:
    """Imitate the expert for so many minutes, write a Hugging Face folder, and play with the model."""
    given = parser().parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.navigation.train", *words])
    with ending_the_process():
        run(given, command)


def run(given: argparse.Namespace, command: str) -> dict[str, Any]:
    """What the flags say; what is written as training.json. Raises HeteroError for settings that cannot be."""
    import torch  # here, so that --help and wrong flags answer at once

    from benchmarks.recall.training.export import check_size, export

    from .card import card
    from .model import Navigator
    from .trainer import Trainer
    from .words import WORDS, tokenizer_files

    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    shape = Shape(Shape.rows(len(WORDS)), given.width, given.layers, given.query_heads, given.kv_heads, given.ffn)
    stages = "0:100" if given.memoryless else given.stages
    settings = Settings(
        given.minutes, given.steps, stages, given.batch_tokens, given.rate, given.warmup,
        seed=given.seed, workers=given.workers, compile=given.compile,
    )  # fmt: skip
    layout = LAYOUTS[given.layout]
    check_size(shape, tokenizer_files(), given.max_mib)
    torch.manual_seed(settings.seed)
    model = Navigator(shape)
    if given.start is not None:
        model.load_state_dict(started(given.start, shape).state_dict())
    model.to(device)
    given.out.mkdir(parents=True, exist_ok=True)
    state = given.out.with_name(given.out.name + ".state")
    curve: list[dict[str, Any]] = []

    def pause(seconds: float) -> None:
        curve.extend({"seconds": round(seconds), **row} for row in evaluate(model, given))

    write = partial(export, given.out, model, tokenizer_files())  # also while training: it may be ended from outside
    trainer = Trainer(
        model, layout, settings, state, given.slips, pause=pause, pause_every=given.play_every, export=write
    )  # fmt: skip
    trainer.log(f"{shape.parameters:,} parameters on {device}")
    trainer.train()
    write()
    played = evaluate(model, given)
    record = {
        "command": command, "shape": asdict(shape) | {"parameters": shape.parameters}, "settings": asdict(settings),
        "layout": asdict(layout), "slips": given.slips, "memoryless": given.memoryless, "totals": trainer.totals(),
        "curve": curve, "played": played, "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "torch": torch.__version__,
    }  # fmt: skip
    (given.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    (given.out / "README.md").write_text(card(given.out.name, record))
    state.unlink(missing_ok=True)
    return record


def started(folder: Path, shape: Shape) -> Any:
    """The model in a folder that an earlier training wrote. Raises HeteroError for one of another shape."""
    import torch
    from transformers import AutoModelForCausalLM

    from .model import Navigator

    found = Navigator.of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    if found.shape != shape:
        raise HeteroError(f"The model in {folder} has the shape {found.shape}, not {shape}: pass flags that agree.")
    return found


def evaluate(model: Any, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Play worlds of several sizes with the trained model, all episodes of a size at once."""
    from .episode import play, summary
    from .model import ModelPlayer, Navigator
    from .words import most_tokens

    plain = Navigator(model.shape).to(model.lm_head.weight.device)  # its parts are not compiled for one length
    plain.load_state_dict(model.state_dict())
    rows = []
    for rooms in given.play_rooms:
        layout = LAYOUTS[given.layout].of(rooms)
        seeds = range(EVALUATION_SEED, EVALUATION_SEED + given.episodes)
        player = ModelPlayer(plain, given.episodes, most_tokens(layout), given.memoryless)
        rows.append({"rooms": rooms, **summary(play(layout, seeds, player))})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def parser() -> argparse.ArgumentParser:
    """The flags; their defaults are those of the model that is shipped."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.navigation.train",
        description=main.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add(
        "--out",
        type=Path,
        required=True,
        help="folder to write; OUT.state beside it is what a later start goes on from",
    )
    add("--start", type=Path, help="folder of a model to start from, with a rate and stages of its own")
    add("--device", help="cuda or cpu; where there is a GPU, it, if left out")
    add("--minutes", type=float, default=8.0, help="training time, without compilation and playing")
    add("--steps", type=int, help="train this many steps, however long they take")
    add("--stages", default=STAGES, help="rooms on a side in turn, and the share of the training; 0: turns alone")
    add("--layout", choices=LAYOUTS, default="corridor")
    add("--slips", type=float, default=0.05, help="likelihood that a turn goes wrong; the next then does so by half")
    add(
        "--memoryless",
        action="store_true",
        help="stages 0:100, and play turn by turn: what can be done without a history",
    )
    add("--batch-tokens", type=int, default=65536, help="tokens per step")
    add("--rate", type=float, default=1.5e-3, help="peak learning rate")
    add("--warmup", type=int, default=200, help="warm-up steps")
    add("--workers", type=int, default=15, help="processes that draw demonstrations; 0: none but this one")
    add("--seed", type=int, default=0, help="of initial weights and worlds")
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="compile on a GPU")
    add("--layers", type=int, default=16)
    add("--width", type=int, default=256, help="hidden size")
    add("--query-heads", type=int, default=4, help="of size 64")
    add("--kv-heads", type=int, default=2)
    add("--ffn", type=int, default=384, help="inner size of the MLPs")
    add("--max-mib", type=float, default=20.0, help="refuse a shape whose checkpoint would be larger")
    add("--episodes", type=int, default=64, help="to play of each size after training")
    add("--play-every", type=float, default=0, metavar="SECONDS", help="play while training too; 0: never")
    add("--play-rooms", type=int, nargs="*", default=[2, 4, 6], help="sizes to play")
    return made


if __name__ == "__main__":
    main()
