"""Greedy tokens of heterocache on a GPU, eager and with CUDA graphs, against those of its torch engine on a CPU.

Answers to questions, with rows fetched as pivots drift; steps wait for them, so that every run fetches the same. An
answer that hangs on the last bit of a logit is no reference and is passed over (`--least-margin 0`: none is). `--write`
collects the CPU's tokens; without it they are compared on a GPU, with a server of each mode on the same card at the
same time. Each gets one request at a time: a batch changes bits. Float16 has its own reference:
`--flags dtype=float16 --reference device-identity-cpu-float16`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import threading
from collections.abc import Container, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from queue import Queue
from typing import Any

from benchmarks import results
from benchmarks.answers import Answers, News
from benchmarks.launch import ROOT, Server
from benchmarks.recall import Language
from benchmarks.run import Run, add_log_option, add_options, named
from hetero_sglang.config import development

REFERENCE = "device-identity-cpu"
FLAGS = {"hetero_keep_ratio": 0.3, "hetero_dense_below": 1200, "hetero_window": 32}
MODEL = ROOT / "assets" / "recall-chains-8m"
WAITS = {development.ALLOWED: "1", development.WAIT: "1"}
# Slots enough for all requests and no more: the host tier of a whole card would take minutes to pin.
ON_GPU: dict[str, Any] = {"max_total_tokens": 262144, "max_running_requests": 4, "cuda_graph_max_bs": 4}
MODES: dict[str, dict[str, Any]] = {"graph": {}, "eager": {"disable_cuda_graph": True}}
LEAST_MARGIN = 0.25  # between a token's logit and the next best: two steps of bfloat16 where logits are 16 to 32
TOLD = ("compressed_requests", "drift_triggers", "fetched_rows", "integrity")


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


def collect(news: Queue[News], answers: dict[str, Answers], run: Run) -> None:
    """Save every answer as it comes, until each mode has ended."""
    waited = set(answers)
    while waited:
        item = news.get()
        if item.output is None:
            waited.discard(item.mode)
        answers[item.mode].note(item)
        run.rows = [each.row() for each in answers.values()]
        run.save()


def main() -> None:
    """Collect, or compare and print how many are identical."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device_identity", description=__doc__)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="collect the reference on a machine without a GPU")
    parser.add_argument("--reference", default=REFERENCE, help=f"name of the CPU's tokens ({REFERENCE})")
    parser.add_argument(
        "--least-margin", type=float, default=LEAST_MARGIN, help=f"with --write: pass over less ({LEAST_MARGIN})"
    )
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--flags", nargs="*", default=[], help="NAME=VALUE server flags")
    add_options(parser, "device-identity")
    add_log_option(parser)
    given = parser.parse_args()
    if given.write:
        _write(given)
        return
    reference = json.loads((results.FOLDER / f"{given.reference}.json").read_text())
    wanted = reference["outputs"][: given.requests]
    asked = list(requests(len(wanted), {int(number) for number in reference["passed_over"]}))
    answers = {mode: Answers(mode, wanted) for mode in given.modes}
    with Run(given) as run:
        try:
            _compare(given, asked, answers, run)
        finally:
            print("\n".join(mine.line() for mine in answers.values()), flush=True)
    print("saved", run.save())


def _compare(given: argparse.Namespace, asked: list[Request], answers: dict[str, Answers], run: Run) -> None:
    news: Queue[News] = Queue()
    try:
        with ExitStack() as stack:
            for mode in answers:
                run.does(f"{mode}: the server's start")
                flags = {**FLAGS, **ON_GPU, **MODES[mode], **named(given.flags)}
                server = Server(MODEL, log=run.log(mode), kv_policy="heterocache", env=WAITS, **flags)
                stack.enter_context(server)
                threading.Thread(target=serve, args=(mode, server, asked, news), daemon=True).start()
            run.does("answers")
            collect(news, answers, run)
    finally:  # answers that came while a server started
        while not news.empty():
            item = news.get()
            answers[item.mode].note(item)
        run.rows = [mine.row() for mine in answers.values()]


def _write(given: argparse.Namespace) -> None:
    outputs: list[list[int]] = []
    passed_over: dict[int, float] = {}  # margins by number
    margins: list[float] = []  # of the others
    with Server(MODEL, kv_policy="heterocache", env=WAITS, **FLAGS, **named(given.flags)) as server:
        for number, request in enumerate(candidates()):
            output, margin = least_margin(server, request)
            if margin < given.least_margin:
                passed_over[number] = margin
            else:
                outputs.append(output)
                margins.append(round(margin, 4))
            if len(outputs) == given.requests:
                break
        stats = server.stats()
    told = {name: stats[name] for name in TOLD}
    result = {"flags": FLAGS, "told": told, "passed_over": passed_over, "margins": margins, "outputs": outputs}
    print(told, f"passed over: {passed_over}", f"margins from {min(margins)}", results.save(given.reference, result))


if __name__ == "__main__":
    main()
