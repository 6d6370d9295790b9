"""Language-model quality of a checkpoint on real long texts, in the real server under each policy.

A prompt is prefilled; its true continuation is then forced through decode steps one by one, so that each is attended
to with the policy's working sets. Every step scores the true next token and compares the whole distribution with plain
SGLang's at the same place.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.quality.client import Client
from benchmarks.quality.counters import measured_ratio
from benchmarks.quality.host import parse_flags
from benchmarks.quality.jobs import Jobs
from benchmarks.quality.plots import load_pyplot
from benchmarks.quality.servers import Servers
from benchmarks.real.arithmetic import ALL, rows_per_head, summarize
from benchmarks.real.measure import Measure
from benchmarks.real.setting import FULL, Setting, parse_settings
from benchmarks.real.show import plot, table
from benchmarks.real.sources import KINDS
from benchmarks.real.tasks import CHAT, TASKS, talk, tasks
from benchmarks.real.texts import CALIBRATION, HELD_OUT, Text, texts
from benchmarks.run import Run, add_options
from hetero_sglang.errors import HeteroError, ending_the_process

LEAST_SLOTS = 40_000  # the longest request a server admits must fit at any ratio, whatever the texts need


def main(arguments: Sequence[str] | None = None) -> None:
    """A table, JSON and a plot in results/, or calibration texts."""
    given = _parser().parse_args(arguments)
    with ending_the_process():
        for name in ("prompt", "steps", "texts", "parallel", "jobs"):
            if getattr(given, name) < 1:
                raise HeteroError(f"--{name} {getattr(given, name)}: pass 1 or more.")
        if given.calibration_out:
            print("wrote", write_calibration(given), "texts to", given.calibration_out)
        else:
            run(given)


def run(given: argparse.Namespace) -> None:
    """Measure every setting that has a server. Raises HeteroError for what cannot be, or without plain SGLang's."""
    settings, pyplot = parse_settings(given.policies, given.profile), None if given.no_plot else load_pyplot()
    flags = {"enable_custom_logit_processor": True, **parse_flags(given.server_flags)}
    flags.setdefault("max_total_tokens", max(LEAST_SLOTS, 2 * given.parallel * (given.prompt + given.steps)))
    if given.scratch and not given.scratch.is_dir():
        raise HeteroError(f"--scratch {given.scratch} is no folder: make it first.")
    heads = kv_heads(given.model)
    tokenizer = load_tokenizer(given.model)
    chosen = wanted(given, tokenizer, HELD_OUT)
    told = {"model": given.model.name, "prompt": given.prompt, "steps": given.steps, "parallel": given.parallel}
    told |= {
        "profile": given.profile and Path(given.profile).name,
        "server_flags": given.server_flags,
        "heads": heads,
    }
    with Run(given, **told) as measured, tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        servers = Servers(str(given.model), flags, given.log_dir or Path(scratch, "logs"), given.jobs)
        measure = Measure(chosen, Path(scratch), given.parallel)
        saving, compared = threading.Lock(), threading.Event()

        def one(setting: Setting) -> None:
            with saving:
                measured.does(f"{setting.label}: the server starts")
            try:
                with servers.serve(setting) as client:
                    if setting == FULL:
                        measure.texts = with_answers(chosen, client, tokenizer)
                        measured.told["inputs"] = [text.told for text in measure.texts]
                    else:
                        compared.wait()
                        if not measure.references:  # full came to nothing, which ends the run
                            return
                    _measure(measured, measure, client, setting, heads, saving)
            except HeteroError as error:
                if setting == FULL:
                    raise
                with saving:
                    measured.told.setdefault("failures", {})[setting.label] = str(error)
                    print(f"{setting.label} is left out: {error}", flush=True)
            finally:
                if setting == FULL:  # which all others are compared with
                    compared.set()

        Jobs(given.jobs, servers.halt).run(one, settings)
    print(table(measured.rows))
    print("saved", measured.save())
    if pyplot and any(row["policy"] != "full" for row in measured.rows):
        print("saved", plot(pyplot, measured.rows, results.FOLDER / f"{given.name}.png"))


def _measure(run: Run, measure: Measure, client: Client, setting: Setting, heads: int, saving: threading.Lock) -> None:
    """A row per kind and, of several, one of all."""
    rows: list[dict[str, Any]] = []
    every: list[dict[str, Any]] = []
    counted: list[dict[str, int | None]] = []
    kinds = list(dict.fromkeys(text.kind for text in measure.texts))
    for kind in kinds:
        with saving:
            run.does(f"{setting.label}: {kind}")
        scores, counters = measure.kind(client, setting, kind)
        every, counted = every + scores, [*counted, counters]
        rows.append({**row(setting, kind, scores, [counters], heads), "by_text": scores})
        with saving:
            run.keep(rows[-1])
    if len(kinds) > 1:
        rows.append(row(setting, ALL, every, counted, heads))
        with saving:
            run.keep(rows[-1])
    print(table(rows), flush=True)


def row(
    setting: Setting, kind: str, scores: list[dict[str, Any]], counted: list[dict[str, int | None]], heads: int
) -> dict[str, Any]:
    """What one setting made of one kind."""
    summary = summarize(scores)
    names = [name for name in counted[0] if all(each[name] is not None for each in counted)]
    return {
        "policy": setting.label,
        "kind": kind,
        **summary,
        "rows_per_token_and_head": rows_per_head(counted, summary["decoded"], heads),
        "measured_ratio": measured_ratio(counted),
        "counters": {name: sum(each[name] or 0 for each in counted) for name in names},
    }


def load_tokenizer(model: Path) -> Any:
    """The checkpoint's. Raises HeteroError where it has none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model))
    except (OSError, ValueError) as error:
        raise HeteroError(f"{model} has no tokenizer that can be loaded: {str(error).splitlines()[0]}") from error
    tokenizer.model_max_length = int(1e9)  # whole documents are longer than a model's context, and cut afterwards
    return tokenizer


def wanted(given: argparse.Namespace, tokenizer: Any, side: str) -> list[Text]:
    """Texts of one side, one token longer than prompt and steps: a prefill samples the first of them. And tasks.

    Raises HeteroError for a kind that is not there, or too few documents."""
    if unknown := [kind for kind in given.kinds if kind not in (*KINDS, *TASKS)]:
        raise HeteroError(f"Kind {unknown[0]!r} is not one of {', '.join((*KINDS, *TASKS))}.")
    continued = [kind for kind in given.kinds if kind in KINDS]
    made = texts(continued, side, tokenizer, given.prompt + given.steps + 1, given.texts, given.prompt)
    todo = [kind for kind in dict.fromkeys(given.kinds) if kind in TASKS and side == HELD_OUT]
    return made + (tasks(todo, tokenizer, given.prompt, given.texts) if todo else [])


def with_answers(chosen: list[Text], client: Client, tokenizer: Any) -> list[Text]:
    """Conversations with what plain SGLang answered, a text for each turn."""
    return [turn for text in chosen for turn in (talk(client, tokenizer, text) if text.kind == CHAT else [text])]


def write_calibration(given: argparse.Namespace) -> int:
    """Texts that are never scored, a file each; how many."""
    made = wanted(given, load_tokenizer(given.model), CALIBRATION)
    given.calibration_out.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(made):
        (given.calibration_out / f"{text.kind}-{number:03}.txt").write_text(text.text, encoding="utf-8")
    return len(made)


def kv_heads(model: Path) -> int:
    """KV heads of all layers. Raises HeteroError if `model` is no checkpoint folder."""
    try:
        config = json.loads((model / "config.json").read_text())
        return config["num_hidden_layers"] * config.get("num_key_value_heads", config["num_attention_heads"])
    except (OSError, ValueError, KeyError) as error:
        raise HeteroError(f"{model} is no checkpoint folder with a usable config.json ({error!r}).") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_text", description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="checkpoint folder")
    add(
        "--policies", nargs="+", metavar="P", default=["heterocache@0.5"],
        help="POLICY@RATIO, with further server flags after a colon: 'heterocache@0.3:--hetero-retrieval off'; "
        "full is measured in any case",
    )  # fmt: skip
    add("--prompt", type=int, default=6144, help="tokens of a prompt, of a task's about so many (default: 6144)")
    add("--steps", type=int, default=384, help="decode steps after it (default: 384)")
    add(
        "--kinds",
        nargs="+",
        metavar="KIND",
        default=list(KINDS),
        help=f"texts to continue, of {', '.join(KINDS)} (default: all), or tasks, of {', '.join(TASKS)}",
    )
    add("--texts", type=int, default=2, help="of each kind (default: 2)")
    add("--parallel", type=int, default=1, help="texts in flight at once (default: 1)")
    add("--jobs", type=int, default=1, help="settings at once, each on a server of its own (default: 1)")
    add("--profile", metavar="FILE", help="head profile, for the policies that read one (default: the model's own)")
    add(
        "--server-flags", default="", metavar="WORDS", help="for every server, as '--hetero-window 128 --dtype float32'"
    )
    add(
        "--calibration-out",
        type=Path,
        metavar="FOLDER",
        help="write texts there that are never scored; measure nothing",
    )
    add(
        "--scratch", type=Path, help="where plain SGLang's distributions lie meanwhile: 4 bytes per text, step and word"
    )
    add("--log-dir", type=Path, help="keep the servers' logs there")
    add("--no-plot", action="store_true", help="table and JSON alone")
    add_options(parser, "real-text")
    return parser


if __name__ == "__main__":
    main()
