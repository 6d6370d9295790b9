"""A server of plain SGLang and one of ours, asked the same."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.device_identity import LEAST_MARGIN, Request, answer, least_margin
from benchmarks.launch import RECALL, Server
from benchmarks.quality.servers import last_word
from benchmarks.recall import Language, evaluate
from benchmarks.weights.packing import FORMATS
from benchmarks.weights.quantise import quantise

AT_LOAD: dict[str, Any] = {"load_format": "bitsandbytes"}  # which SGLang does not choose by itself
# Name -> the checkpoint's format (None: plain, quantised as it is loaded) and flags of both servers.
CASES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "plain": (None, {}),
    **{name: (name, {}) for name in FORMATS},
    "nf4": ("nf4", AT_LOAD),
    "fp8-at-load": (None, {"quantization": "fp8"}),
}
DEFAULT = ("fp8", "awq", "gptq", "nf4")
WHOLE = 3000  # tokens; shorter requests are not compressed
RATIO = 0.5
TOKENS = 4096  # of a document whose entries are asked for
OURS: dict[str, Any] = {"kv_policy": "heterocache", "hetero_keep_ratio": RATIO, "hetero_dense_below": WHOLE}
PLAIN: dict[str, Any] = {"kv_policy": "full"}
BOTH: dict[str, Any] = {"max_total_tokens": 60000, "grammar_backend": "none"}
ON_GPU: dict[str, Any] = {"max_running_requests": 8, "cuda_graph_max_bs": 8}
PLAIN_ON_GPU: dict[str, Any] = {"attention_backend": "flashinfer", "cuda_graph_backend_prefill": "disabled"}
START = 300.0  # seconds until both answer
TOLD = ("compressed_requests", "fetched_rows", "late_rows", "integrity")


def questions(language: Language, count: int) -> list[Request]:
    """About documents of 300 to 2600 tokens, always the same ones."""
    found = []
    for number, tokens in zip(range(count), itertools.cycle((300, 600, 1300, 2000, 2600))):
        document = language.document(number, tokens, max(8, tokens // 60))
        question = language.ask(document, number, 1 + number % 8)
        found.append(Request(document.ids + question.ids, question.max_answer_tokens))
    return found


def checkpoint(name: str, folder: Path) -> Path:
    """The recall model as a case has it; quantised, it lies in `folder`."""
    packed = CASES[name][0]
    return RECALL if packed is None else quantise(RECALL, packed, folder / name)


def measured(
    model: Path,
    flags: dict[str, Any],
    requests: int,
    documents: int,
    logs: dict[str, Path | None] | None = None,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """A row: answers to `requests` questions, and entries of `documents` documents. `flags` are of both servers, `logs`
    of `plain` and `ours`.

    Raises RuntimeError with the last word of a server that does not start."""
    language, begun, on_gpu = Language.load(RECALL), time.monotonic(), torch.cuda.is_available()
    shared = {**BOTH, **(ON_GPU if on_gpu else {}), **flags}
    with ExitStack() as stack:
        plain_flags = {**shared, **PLAIN, **(PLAIN_ON_GPU if on_gpu else {})}
        plain = Server(model, log=(logs or {}).get("plain"), **plain_flags)
        ours = Server(model, log=(logs or {}).get("ours"), **{**shared, **OURS})
        for server in (plain, ours):
            server.launch()
            stack.callback(server.stop, at_once=True)
        for server in (plain, ours):
            try:
                server.wait(START)
            except RuntimeError:
                raise RuntimeError(f"{last_word(server.tail(1 << 20))} ({server.log})") from None
        started = {"plain": round(plain.started_in, 1), "ours": round(ours.started_in, 1)}
        say("answers")
        row: dict[str, Any] = {"started_in": started, **compared(plain, ours, questions(language, requests))}
        say("recall")
        for kind, server in (("plain", plain), ("ours", ours)):
            score = evaluate(server.url, language, TOKENS, documents=documents, turns=2).score
            row[f"recall_{kind}"] = {"right": score.right, "total": score.total}
        stats = ours.stats()
    right = row["recall_plain"]["right"]
    told = {each: stats[each] for each in TOLD}
    of_plain = row["recall_ours"]["right"] / right if right else None
    return {**row, **told, "of_plain": of_plain, "seconds": round(time.monotonic() - begun, 1)}


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
