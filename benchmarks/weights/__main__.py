"""Quantised weights under plain SGLang and under ours, a server of each beside the other: the recall model in every
format, quantised on the spot, with the head profile that ours makes of it at its start.

Answers are compared where nothing is compressed. On a GPU the two attend with other kernels, so an answer that hangs on
the last bits of a logit is counted apart: one is firm if no next best token ever came nearer than LEAST_MARGIN. Then
entries of long documents are asked for, with half of the rows on the GPU."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.device_identity import LEAST_MARGIN, Request, answer, least_margin
from benchmarks.launch import RECALL, Server
from benchmarks.quality.servers import last_word
from benchmarks.recall import Language, evaluate
from benchmarks.run import Run, add_log_option, add_options
from benchmarks.weights.packing import FORMATS
from benchmarks.weights.quantise import quantise
from hetero_sglang.errors import HeteroError

AT_LOAD: dict[str, Any] = {"load_format": "bitsandbytes"}  # which SGLang does not choose by itself
# Name -> the checkpoint's format (None: plain, quantised as it is loaded) and flags of both servers.
CASES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "plain": (None, {}),
    **{name: (name, {}) for name in FORMATS},
    "nf4": ("nf4", AT_LOAD),
    "nf4-at-load": (None, {**AT_LOAD, "quantization": "bitsandbytes"}),
    "fp8-at-load": (None, {"quantization": "fp8"}),
}
DEFAULT = ("fp8", "awq", "gptq", "nf4-at-load")
WHOLE = 3000  # tokens; shorter requests are not compressed
RATIO = 0.5
TOKENS = 4096  # of a document whose entries are asked for
OURS: dict[str, Any] = {"kv_policy": "heterocache", "hetero_keep_ratio": RATIO, "hetero_dense_below": WHOLE}
PLAIN: dict[str, Any] = {"kv_policy": "full"}
BOTH: dict[str, Any] = {"max_total_tokens": 60000, "grammar_backend": "none"}
ON_GPU: dict[str, Any] = {"max_running_requests": 8, "cuda_graph_max_bs": 8}
PLAIN_ON_GPU: dict[str, Any] = {"attention_backend": "flashinfer", "cuda_graph_backend_prefill": "disabled"}
START = 240.0  # seconds until both answer
TOLD = ("compressed_requests", "fetched_rows", "late_rows", "integrity")


def questions(language: Language, count: int) -> list[Request]:
    """About documents of 300 to 2600 tokens, always the same ones."""
    found = []
    for number, tokens in zip(range(count), itertools.cycle((300, 600, 1300, 2000, 2600))):
        document = language.document(number, tokens, max(8, tokens // 60))
        question = language.ask(document, number, 1 + number % 8)
        found.append(Request(document.ids + question.ids, question.max_answer_tokens))
    return found


def measured(name: str, model: Path, flags: dict[str, Any], given: argparse.Namespace, run: Run) -> dict[str, Any]:
    """A row. Raises RuntimeError with the log's end where a server does not start."""
    language, begun = Language.load(RECALL), time.monotonic()
    on_gpu = torch.cuda.is_available()
    shared = {**BOTH, **(ON_GPU if on_gpu else {}), **flags, **words(given.flags)}
    with ExitStack() as stack:
        cache = stack.enter_context(tempfile.TemporaryDirectory())  # no profile is there yet
        kinds = {"plain": {**PLAIN, **(PLAIN_ON_GPU if on_gpu else {})}, "ours": OURS}
        env = {"XDG_CACHE_HOME": cache}
        servers = {
            kind: Server(model, log=run.log(name, kind), env=env if kind == "ours" else None, **{**shared, **own})
            for kind, own in kinds.items()
        }
        for server in servers.values():
            server.launch()
            stack.callback(server.stop, at_once=True)
        for server in servers.values():
            server.wait(START)
        plain, ours = servers["plain"], servers["ours"]
        row: dict[str, Any] = {"started_in": {kind: round(each.started_in, 1) for kind, each in servers.items()}}
        run.does(f"{name}: answers")
        row |= compared(plain, ours, questions(language, given.requests))
        run.does(f"{name}: recall")
        for kind, server in servers.items():
            score = evaluate(server.url, language, TOKENS, documents=given.documents, turns=2).score
            row[f"recall_{kind}"] = {"right": score.right, "total": score.total}
        row |= {each: ours.stats()[each] for each in TOLD}
    right = row["recall_plain"]["right"]
    return {**row, "of_plain": row["recall_ours"]["right"] / right if right else None, "s": time.monotonic() - begun}


def compared(plain: Server, ours: Server, asked: list[Request]) -> dict[str, Any]:
    """How many answers are the same, of all and of those that are firm; how many of ours were compressed."""
    same, firm = 0, 0
    different: list[dict[str, Any]] = []
    close = 0  # of the different
    for number, request in enumerate(asked):
        wanted, margin = least_margin(plain, request)
        found = answer(ours, request)
        same += found == wanted
        firm += margin >= LEAST_MARGIN
        if found != wanted:
            close += margin < LEAST_MARGIN
            different.append({"number": number, "margin": round(margin, 4), "plain": wanted, "ours": found})
    firm_same = firm - (len(different) - close)
    counts = {"requests": len(asked), "identical": same, "firm": firm, "firm_identical": firm_same}
    return {**counts, "different": different, "compressed_meanwhile": ours.stats()["compressed_requests"]}


def words(given: list[str]) -> dict[str, Any]:
    """Server flags of NAME=VALUE and bare NAME words."""
    return {name: value if sign else True for name, sign, value in (word.partition("=") for word in given)}


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    if "error" in row:
        return f"{row['format']:<18}not served: {row['error']}"
    plain, ours = row["recall_plain"], row["recall_ours"]
    return (
        f"{row['format']:<18}{row['identical']:>3} of {row['requests']} answers identical, of the firm "
        f"{row['firm_identical']} of {row['firm']}; recall {plain['right']} of {plain['total']} plain, "
        f"{ours['right']} ours"
    )


def main() -> None:
    """A table, and JSON in results/weights.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__)
    parser.add_argument("--formats", nargs="+", choices=CASES, default=list(DEFAULT), metavar="F",
                        help=f"of {', '.join(CASES)} (default: {' '.join(DEFAULT)})")  # fmt: skip
    parser.add_argument("--requests", type=int, default=40, help="that are compared (default: 40)")
    parser.add_argument("--documents", type=int, default=8, help="whose entries are asked for (default: 8)")
    parser.add_argument("--flags", nargs="*", default=[], metavar="NAME=VALUE", help="of both servers")
    add_options(parser, "weights")
    add_log_option(parser)
    given = parser.parse_args()
    with Run(given, model=RECALL.name, flags=given.flags) as run, tempfile.TemporaryDirectory() as folder:
        for name in given.formats:
            run.does(f"{name}: the servers' start")
            packed, flags = CASES[name]
            model = RECALL if packed is None else quantise(RECALL, packed, Path(folder) / name)
            try:
                row = measured(name, model, flags, given, run)
            except (RuntimeError, OSError, HeteroError) as error:  # OSError: it ended while it was asked
                row = {"error": last_word(str(error))}
            print(line(run.keep({"format": name, **row})), flush=True)
    print("saved", run.save())


if __name__ == "__main__":
    main()
