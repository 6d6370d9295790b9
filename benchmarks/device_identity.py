"""Greedy tokens of every policy on a GPU, eager and with CUDA graphs, against those of a CPU's reference operations.

Answers to questions, for which rows come while they are decoded; steps wait for the worker's rankings, so that every
run has the same. An answer that hangs on the last bit of a logit is no reference and is passed over (`--least-margin
0`: none is). `--write` collects the CPU's tokens; without it they are compared on a GPU, with a server of each mode on
the same card at the same time, one policy after the other. Each gets one request at a time: a batch changes bits.
Float16 has its own reference: `--flags dtype=float16 --reference device-identity-cpu-float16`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from queue import Queue
from typing import Any

from benchmarks import results
from benchmarks.answers import Answers, News
from benchmarks.launch import ROOT, Server
from benchmarks.quality.cell import Cell, parse_cells
from benchmarks.quality.preset import VARIANTS
from benchmarks.quality.servers import last_word
from benchmarks.recall import Language
from benchmarks.run import Run, add_log_option, add_options, named
from hetero_sglang.config import development
from hetero_sglang.errors import HeteroError, ending_the_process

REFERENCE = "device-identity-cpu"
KEEP_RATIO = 0.3
FLAGS = {"hetero_dense_below": 1200, "hetero_window": 32}
MODEL = ROOT / "assets" / "recall-chains-8m"
WAITS = {development.ALLOWED: "1", development.WAIT: "1"}
# Slots enough for all requests and no more: the host tier of a whole card would take minutes to pin.
ON_GPU: dict[str, Any] = {"max_total_tokens": 262144, "max_running_requests": 4, "cuda_graph_max_bs": 4}
MODES: dict[str, dict[str, Any]] = {"graph": {}, "eager": {"disable_cuda_graph": True}}
LEAST_MARGIN = 0.25  # between a token's logit and the next best: two steps of bfloat16 where logits are 16 to 32
TOLD = ("compressed_requests", "drift_triggers", "fetched_rows", "late_rows", "integrity")


@dataclass(frozen=True)
class Request:
    """A question about a document, and the most tokens its answer has."""

    ids: list[int]
    tokens: int


def candidates() -> Iterator[Request]:
    """Questions about documents of 600 to 3000 tokens, without end and always the same ones."""
    language, rng = Language.load(MODEL), random.Random(0)
    for number in itertools.count():
        tokens = rng.choice((600, 1300, 2000, 3000))
        document = language.document(number, tokens, tokens // 60)
        question = language.ask(document, number, rng.randint(1, 8))
        yield Request(document.ids + question.ids, question.max_answer_tokens)


def requests(count: int, passed_over: Container[int] = ()) -> Iterator[Request]:
    """The first `count` candidates whose number is not named."""
    taken = (request for number, request in enumerate(candidates()) if number not in passed_over)
    return itertools.islice(taken, count)


def answer(server: Server, request: Request) -> list[int]:
    """Output ids, up to the end of the line."""
    return server.generate(request.ids, request.tokens, stop=["\n"])["output_ids"]


def least_margin(server: Server, request: Request) -> tuple[list[int], float]:
    """Output ids as `answer` has them, and how far the next best token was at the closest."""
    asked = {"return_logprob": True, "top_logprobs_num": 2}
    reply = server.generate(request.ids, request.tokens, stop=["\n"], request=asked)
    best_two = reply["meta_info"]["output_top_logprobs"]  # per token: [logarithm, id, text] of the two
    return reply["output_ids"], min(best[0] - second[0] for best, second in best_two)


def serve(mode: str, server: Server, asked: list[Request], news: Queue[News]) -> None:
    """Put every answer into `news`, and an end."""
    try:
        for request in asked:
            output, stats = answer(server, request), server.stats()
            news.put(News(mode, output, {name: stats[name] for name in TOLD}))
        news.put(News(mode, None))
    except (HTTPException, OSError) as error:
        news.put(News(mode, None, error=f"({error})"))


def collect(news: Queue[News], answers: dict[str, Answers], save: Callable[[], object]) -> None:
    """Save every answer as it comes, until each mode has ended."""
    waited = set(answers)
    while waited:
        item = news.get()
        if item.output is None:
            waited.discard(item.mode)
        answers[item.mode].note(item)
        save()


def main() -> None:
    """Collect, or compare and print how many are identical."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device_identity", description=__doc__)
    parser.add_argument(
        "--policies", nargs="+", metavar="P", default=list(VARIANTS[1:]),
        help=f"variants as of benchmarks.quality (default: {' '.join(VARIANTS[1:])})",
    )  # fmt: skip
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="collect the references on a machine without a GPU")
    parser.add_argument("--reference", default=REFERENCE, help=f"the CPU's tokens are in NAME-POLICY ({REFERENCE})")
    parser.add_argument(
        "--least-margin", type=float, default=LEAST_MARGIN, help=f"with --write: pass over less ({LEAST_MARGIN})"
    )
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--flags", nargs="*", default=[], help="NAME=VALUE server flags")
    add_options(parser, "device-identity")
    add_log_option(parser)
    given = parser.parse_args()
    with ending_the_process():
        cells = parse_cells(given.policies, [KEEP_RATIO])
        if any(cell.policy == "full" for cell in cells):
            raise HeteroError("full is SGLang's own, with nothing of ours to compare: name other --policies.")
        (write if given.write else compare)(given, cells)


def reference_name(reference: str, cell: Cell) -> str:
    """Of the JSON in results/ with the CPU's tokens of a policy."""
    return f"{reference}-{re.sub(r'[^a-z0-9]+', '-', cell.variant)}"


def compare(given: argparse.Namespace, cells: list[Cell]) -> None:
    """A line per policy and mode. Policies without a reference are left out; HeteroError when no other is there."""
    asked: dict[Cell, list[Request]] = {}
    answers: dict[Cell, dict[str, Answers]] = {}
    for cell in cells:
        path = results.FOLDER / f"{reference_name(given.reference, cell)}.json"
        if not path.exists():
            print(f"{cell.variant} is left out: {path.name} is not there; --write collects it", flush=True)
            continue
        told = json.loads(path.read_text())
        wanted = told["outputs"][: given.requests]
        asked[cell] = list(requests(len(wanted), {int(number) for number in told["passed_over"]}))
        answers[cell] = {mode: Answers(cell.variant, mode, wanted) for mode in given.modes}
    if not answers:
        raise HeteroError(f"No policy has its CPU's tokens in {results.FOLDER}: run with --write without a GPU first.")
    every = [mine for modes in answers.values() for mine in modes.values()]
    left_out = [cell.variant for cell in cells if cell not in answers]
    with Run(given, left_out=left_out) as run:

        def save() -> None:
            run.rows = [mine.row() for mine in every]
            run.save()

        try:
            for cell in answers:
                _compare(given, cell, asked[cell], answers[cell], run, save)
        finally:
            print("\n".join(mine.line() for mine in every), flush=True)
    print("saved", run.save())


def _compare(
    given: argparse.Namespace, cell: Cell, asked: list[Request], answers: dict[str, Answers], run: Run,
    save: Callable[[], object],
) -> None:  # fmt: skip
    """One policy; a server that does not start is noted, and the next policy's turn comes."""
    news: Queue[News] = Queue()
    try:
        with ExitStack() as stack:
            for mode in answers:
                run.does(f"{cell.variant}: {mode}, the server's start")
                flags = {**FLAGS, **ON_GPU, **MODES[mode], **cell.flags, **named(given.flags)}
                server = Server(MODEL, log=run.log(cell.variant, mode), env=WAITS, **flags)
                try:
                    stack.enter_context(server)
                except RuntimeError:
                    news.put(News(mode, None, error=f"({last_word(server.tail())})"))
                    continue
                threading.Thread(target=serve, args=(mode, server, asked, news), daemon=True).start()
            run.does(f"{cell.variant}: answers")
            collect(news, answers, save)
    finally:  # answers that came while a server started
        while not news.empty():
            item = news.get()
            answers[item.mode].note(item)
        save()


def write(given: argparse.Namespace, cells: list[Cell]) -> None:
    """A file per policy; one whose server does not start is said and left out."""
    for cell in cells:
        flags = {**FLAGS, **cell.flags, **named(given.flags)}
        server = Server(MODEL, env=WAITS, **flags)
        try:
            server.start()
        except RuntimeError:
            print(f"{cell.variant} is left out: {last_word(server.tail())}", flush=True)
            continue
        try:
            result = written(server, given.requests, given.least_margin)
        finally:
            server.stop()
        print(f"{cell.variant}: {result['told']}", f"passed over: {result['passed_over']}", flush=True)
        print("saved", results.save(reference_name(given.reference, cell), {"flags": flags, **result}), flush=True)


def written(server: Server, count: int, margin: float) -> dict[str, Any]:
    """The `outputs` of `count` candidates whose `margins` are large enough, margins of those `passed_over`, by number,
    and the server's counters."""
    outputs: list[list[int]] = []
    passed_over: dict[int, float] = {}
    margins: list[float] = []
    for number, request in enumerate(candidates()):
        if len(outputs) == count:
            break
        output, least = least_margin(server, request)
        if least < margin:
            passed_over[number] = least
        else:
            outputs.append(output)
            margins.append(round(least, 4))
    stats = server.stats()
    told = {name: stats[name] for name in TOLD}
    return {"told": told, "passed_over": passed_over, "margins": margins, "outputs": outputs}


if __name__ == "__main__":
    main()
