"""`python -m benchmarks.navigation`: a small model finds its way on a small machine, in one table and one picture."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.launch import ROOT, Server
from benchmarks.quality.servers import last_word
from benchmarks.results import FOLDER
from benchmarks.run import Run, add_log_option, add_options, named
from hetero_sglang.errors import HeteroError, ending_the_process

from .layout import LAYOUTS

Played = Callable[[], dict[str, Any]]  # a row's result

MODEL = ROOT / "assets" / "navigation-8m"
USUAL: dict[str, Any] = {"max_running_requests": 8, "grammar_backend": "none", "max_total_tokens": 131072}
ON_GPU: dict[str, Any] = {"cuda_graph_max_bs": 8}
PLAIN_ON_GPU: dict[str, Any] = {"attention_backend": "flashinfer", "cuda_graph_backend_prefill": "disabled"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Play the same worlds with every row's server, one after the other, and compare."""
    given = _parser().parse_args(arguments)
    with ending_the_process(), tempfile.TemporaryDirectory() as scratch:
        run(given, given.folder or Path(scratch))


def run(given: argparse.Namespace, folder: Path) -> None:
    """All rows, the bound, the table and the picture. Raises HeteroError where there is no model."""
    import torch  # here, so that --help and wrong flags answer at once

    from .materials import Materials
    from .rows import rows
    from .table import table

    if not (given.model / "model.safetensors").exists():
        raise HeteroError(
            f"There is no model in {given.model}: train one with `python -m benchmarks.navigation.train --out DIR`, "
            "and pass --model DIR."
        )
    gpu = torch.cuda.is_available()
    made = Materials(given.model, folder, LAYOUTS["corridor"], given.exits, given.adapter)
    told = {"model": given.model.name, "episodes": given.episodes, "at_once": given.at_once, "gpu": gpu}
    with Run(given, **told) as run:
        chosen = (
            each for each in rows(made, gpu, given.agreement, given.ratios, given.at_once) if _wanted(each[0], given)
        )
        while group := list(islice(chosen, given.together)):
            with ExitStack() as stack:
                begun = [(name, _begun(name, make, given, run, stack)) for name, make in group]
                ready = [(name, answers()) for name, answers in begun]  # no server starts while another is timed
                for name, played in ready:
                    run.does(name)
                    try:
                        result = played()
                    except (RuntimeError, OSError, HeteroError) as error:  # OSError: a server ended while it was asked
                        result = {"name": name, "skipped": str(error)}
                    run.keep(result)
                    print(json.dumps({key: each for key, each in result.items() if key != "outcomes"}), flush=True)
        if given.bound:
            run.does("the bound")
            run.told["bound"] = _bound(made, given, run)
    print(table(run.rows))
    print("saved", run.save())
    if given.picture:
        from .picture import draw

        print("wrote", draw(run.rows, FOLDER / f"{given.name}.svg"))


def _wanted(name: str, given: argparse.Namespace) -> bool:
    named_so = not given.rows or any(word in name for word in given.rows)
    return named_so and not any(word in name for word in given.without)


def _begun(
    name: str, make: Callable[[str], Any], given: argparse.Namespace, run: Run, stack: ExitStack
) -> Callable[[], Played]:
    """The row's server is on its way, until the stack ends; what comes back waits for it, and gives what plays."""
    from .rows import Skipped

    def skipped(why: str) -> Played:
        return lambda: {"name": name, "skipped": why}

    try:
        row = make(name)
        if isinstance(row, Skipped):
            return partial(skipped, row.why)
        flags = {**row.server_flags(), **named(given.flags)}
        server = _launched(row.model, flags, run.log(name.replace(" ", "-")), stack)
    except (RuntimeError, OSError, HeteroError) as error:
        return partial(skipped, str(error))

    def answers() -> Played:
        try:
            _answers(server)
        except RuntimeError as error:
            return skipped(str(error))
        return lambda: _measured(row, server, given)

    return answers


def _measured(row: Any, server: Server, given: argparse.Namespace) -> dict[str, Any]:
    """A row played; its name, sizes and what `measure` tells."""
    from .play import measure

    layout = row.layout if given.rooms is None else row.layout.of(given.rooms)
    found = measure(server, layout, range(given.episodes), given.at_once, row.request)
    server.stop(at_once=True)
    counters = found["counters"]
    kept = counters["kept_bytes"] / counters["dense_bytes"] if counters.get("dense_bytes") else 1.0
    return {
        "name": row.name,
        "worlds": row.worlds,
        "layers": row.layers,
        "flags": {key: str(value) for key, value in row.server_flags().items()},
        "started_in": round(server.started_in, 1),
        "weight_bytes": row.weight_bytes * _wide(row.flags),
        "kv_bytes": round(kept * found["most_tokens"] * _row_bytes(row.model, row.flags)),  # of the longest history
        "kept_ratio": kept,
        **found,
    }


def _bound(made: Any, given: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Latency of checkpoints cut to a quarter, half and all of the layers."""
    from .bound import Bound, Line, sample, words
    from .demonstration import demonstrate

    shown = demonstrate(LAYOUTS["corridor"].of(given.rooms or 6), 7)
    at = len(shown.turns) - 2
    history, turn = shown.ids[: shown.turns[at]].tolist(), shown.ids[shown.turns[at] : shown.turns[at + 1]].tolist()
    layers = made.layers
    steps, reads = {}, {}
    for count in sorted({max(1, layers // 4), layers // 2 or 1, layers}):
        run.does(f"the bound: {count} layers")
        with ExitStack() as stack:
            flags = {"kv_policy": "full", **named(given.flags)}
            server = _launched(made.cut(count), flags, run.log("cut", count), stack)
            _answers(server)
            steps[count], reads[count] = sample(server, history, turn)
    bound = Bound(layers, Line.through(steps), Line.through(reads))
    branches = sorted({max(1, layers // 8), layers // 4 or 1, layers // 2 or 1})
    print(words(bound, branches))
    return {"history": len(history), "step_ms": steps, "turn_ms": reads, **bound.to_json(branches)}


def _launched(model: Path, flags: dict[str, Any], log: Path | None, stack: ExitStack) -> Server:
    """A server that starts now and ends with the stack, if not before."""
    import torch

    usual = USUAL
    if torch.cuda.is_available():
        usual = {**USUAL, **ON_GPU, **(PLAIN_ON_GPU if flags["kv_policy"] == "full" else {})}
    server = Server(model, log=log, **{**usual, **flags})
    stack.callback(server.stop, at_once=True)
    server.launch()
    return server


def _answers(server: Server) -> None:
    """Wait until it does. Raises RuntimeError with the last word of one that does not start."""
    try:
        server.wait()
    except RuntimeError:
        raise RuntimeError(f"{last_word(server.tail(1 << 20))} ({server.log})") from None


def _row_bytes(model: Path, flags: dict[str, Any]) -> int:
    """Bytes of one token's keys and values in plain SGLang."""
    config = json.loads((model / "config.json").read_text())
    return int(4 * _wide(flags) * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"])


def _wide(flags: dict[str, Any]) -> int:
    """How many times 16 bits a number has."""
    return 2 if flags.get("dtype") == "float32" else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.navigation", description=main.__doc__)
    add = parser.add_argument
    add("--model", type=Path, default=MODEL, help=f"folder of the navigation model (default: {MODEL.name})")
    add("--exits", type=Path, help="of what rows serve, FOLDER's whole-nf4 or whole-numbers (default: trained now)")
    add("--adapter", type=Path, help="of benchmarks.navigation.qlora (default: none)")
    add("--folder", type=Path, help="for what is made of the model; what is there is not made again")
    add("--episodes", type=int, default=32, help="worlds played with each row (32)")
    add("--together", type=int, default=1, help="servers that start at the same time, to be played with in turn (1)")
    add("--at-once", type=int, default=1, help="episodes at once (1)")
    add("--rooms", type=int, help="rooms on a side (default: the layout's)")
    add("--agreement", type=float, default=0.99, help="--hetero-exit-agreement of dynamic exits (0.99)")
    add("--ratios", nargs="*", default=["0.5", "floor+0.02"], metavar="R", help="keep ratios (0.5 floor+0.02)")
    add("--rows", nargs="*", metavar="WORDS", help="only rows whose name has one of these in it")
    add("--without", nargs="*", default=[], metavar="WORDS", help="but none whose name has one of these")
    add("--flags", nargs="*", default=[], metavar="NAME=VALUE", help="of all servers")
    add("--bound", action=argparse.BooleanOptionalAction, default=True, help="also measure what depth can save")
    add("--picture", action=argparse.BooleanOptionalAction, default=True, help="also draw results/NAME.svg")
    add_options(parser, "navigation")
    add_log_option(parser)
    return parser
