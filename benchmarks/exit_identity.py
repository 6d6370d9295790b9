"""Tokens that leave early by lot, on any machine: whoever runs all layers says what plain SGLang would have said there.

Branches of the recall model know two words that no text has: whoever says one has left. All other tokens are read by a
plain server in a prefill, whose first choice they must be; in 16 bits a second choice that is nearly as likely is
`near`. With copied rows deep tokens behind an exit are others. Requests come alone, six at a time and in turns, all of
them short enough to be kept whole, as plain SGLang keeps them. Compressed ones, which a plain server cannot judge, are
asked so that none of their tokens leaves: their answers are to be right beside the others.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.blind_branches import MARKS, write_branches
from benchmarks.launch import RECALL, Server
from benchmarks.quality.servers import last_word
from benchmarks.recall import Language, score
from benchmarks.run import Run, add_log_option, add_options
from benchmarks.weights.compare import ON_GPU, PLAIN_ON_GPU
from hetero_sglang.config import development

LAYERS = (2, 5)
NEAR = 0.05  # nats
TIERED: dict[str, Any] = {"kv_policy": "heterocache", "hetero_keep_ratio": 0.4, "hetero_dense_below": 1024}
CASES: dict[str, dict[str, Any]] = {
    "full": {"kv_policy": "full"},
    "heterocache": TIERED,
    "heterocache, pivots": {**TIERED, "hetero_index": "none"},
    "full, copied": {"kv_policy": "full", "hetero_exit_kv": "copied"},
    "heterocache, copied": {**TIERED, "hetero_exit_kv": "copied"},
}


def judged(plain: Server, ids: list[int], said: list[int]) -> dict[str, int]:
    """What of the tokens said behind a prompt are marks, not full depth's first choice, and nearly that."""
    asks = {"return_logprob": True, "logprob_start_len": len(ids) - 1, "top_logprobs_num": 2}
    best_two = plain.generate(ids + said, 1, asks)["meta_info"]["input_top_logprobs"][1:]
    found = {"tokens": len(said), "left": 0, "near": 0, "wrong": 0}
    for mine, (first, second) in zip(said, best_two, strict=True):
        if mine in MARKS:
            found["left"] += 1
        elif mine != first[1]:
            found["near" if mine == second[1] and first[0] - second[0] < NEAR else "wrong"] += 1
    return found


def prompts(language: Language, count: int, seed: int) -> list[list[int]]:
    """Documents of 60 to 420 tokens."""
    rng = random.Random(seed)
    return [language.document(seed + number, rng.choice((60, 200, 420)), 6).ids for number in range(count)]


def replies(server: Server, language: Language) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts and what is said: alone, six at a time, and four turns of a conversation."""

    def said(ids: list[int], count: int) -> list[int]:
        return list(server.generate(ids, count, ignore_eos=True)["output_ids"])

    for ids in prompts(language, 4, 3):
        yield ids, said(ids, 50)
    every, counts = prompts(language, 24, 7), [random.Random(number).choice((3, 20, 50)) for number in range(24)]
    with ThreadPoolExecutor(6) as pool:
        yield from zip(every, pool.map(said, every, counts), strict=True)
    ids = prompts(language, 1, 8)[0]
    for turn in range(4):
        told = said(ids, 30)
        yield ids, told
        ids = ids + told + prompts(language, 1, turn)[0][:20]


def answered(server: Server, language: Language) -> dict[str, int]:
    """Entries of documents that are compressed, asked for so that no token leaves."""
    right = total = 0
    for seed in range(4):
        document = language.document(seed, 2500, 40)
        question = language.ask(document, seed, 6)
        reply = server.generate(
            document.ids + question.ids, question.max_answer_tokens, {"return_logprob": True}, stop=["\n"]
        )
        marks = score(reply["text"], document=document, names=question.names)
        right, total = right + marks.right, total + marks.total
    return {"right": right, "asked": total}


def main() -> None:
    """A line a case, and JSON in results/exit_identity.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exit_identity", description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--dtype", help="default: float16 on a GPU, float32 elsewhere")
    parser.add_argument("--share", type=float, default=0.5, help="of the branches, where a batch leaves")
    add_options(parser, "exit_identity")
    add_log_option(parser)
    given = parser.parse_args()
    gpu, language = torch.cuda.is_available(), Language.load(RECALL)
    usual: dict[str, Any] = {"max_total_tokens": 16000, "dtype": given.dtype or ("float16" if gpu else "float32")}
    usual |= {"grammar_backend": "none", **ON_GPU} if gpu else {}
    config = json.loads((RECALL / "config.json").read_text())
    env = {development.ALLOWED: "1", development.FORCED_EXITS: str(given.share)}
    with Run(given, share=given.share, dtype=usual["dtype"]) as run, tempfile.TemporaryDirectory() as scratch:
        exits = write_branches(Path(scratch) / "exits.json", config, LAYERS, MARKS, 0.5, -1e4)
        flags = {"hetero_early_exit": exits, "hetero_exit_agreement": 0.9}
        run.does("start of plain SGLang")
        own = PLAIN_ON_GPU if gpu else {}
        with Server(RECALL, run.log("plain"), kv_policy="full", **usual, **own) as plain:
            for case in given.cases:
                run.does(case)
                chosen = {**usual, **(own if case.startswith("full") else {}), **flags, **CASES[case]}
                server = Server(RECALL, run.log(case.replace(", ", "-")), env, **chosen)
                row: dict[str, Any]
                try:
                    server.start()
                    counts = [judged(plain, ids, told) for ids, told in replies(server, language)]
                    row = {name: sum(each[name] for each in counts) for name in counts[0]}
                    row |= {**answered(server, language), "exits": server.stats()["early_exit"]}
                except (RuntimeError, OSError) as error:  # OSError: it ended while it was asked
                    row = {"failed": f"{last_word(server.tail()) or error}"}
                finally:
                    server.stop(at_once=True)
                print(run.keep({"case": case, **row}), flush=True)
    print("saved", run.save())


if __name__ == "__main__":
    main()
