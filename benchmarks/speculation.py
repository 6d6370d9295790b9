"""Speculative decoding by n-grams beside none, of heterocache and of plain SGLang, in one run.

`answers`: questions of documents to a model that answers them, each twice: SGLang drafts from what it has answered
before, so the second time its drafts are good. Whether the tokens are plain SGLang's, how many are right, how many
stay in a verification, tokens a second. `speed`: the Llama-3.1-8B shape with random weights on a GPU, where SGLang is
told how many drafts stay (SGLANG_SIMULATE_ACC_LEN), since random weights say nothing that could be drafted.

On a CPU plain SGLang verifies no drafts: that server is left out there."""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import shapes
from benchmarks.alternation import groups, turns, up
from benchmarks.cases import stream
from benchmarks.dummy import changed_rows, dummy_server, index_profile, random_prompt
from benchmarks.launch import RECALL, Server
from benchmarks.recall import Language, Score, ask_chain, chain_document, chain_entries, score, score_chain
from benchmarks.run import Run, add_log_option, add_options
from benchmarks.streams import gaps
from benchmarks.weights.compare import ON_GPU, PLAIN_ON_GPU

PLAIN, OURS = "SGLang", "heterocache"


@dataclass(frozen=True)
class Asked:
    """A question of a document, how long its answer may be, and how that is marked."""

    ids: list[int]
    most: int
    grade: Callable[[str], Score]


def named(drafts: bool, policy: str) -> str:
    """A server's name in the table."""
    return f"{policy}, drafts" if drafts else policy


def kinds(on_gpu: bool) -> list[tuple[str, bool]]:
    """Policy, and whether it drafts."""
    every = [(PLAIN, False), (PLAIN, True), (OURS, False), (OURS, True)]
    return [kind for kind in every if on_gpu or kind != (PLAIN, True)]


def drafting(tokens: int) -> dict[str, Any]:
    """Flags."""
    return {"speculative_algorithm": "NGRAM", "speculative_num_draft_tokens": tokens}


# ---- answers


def asked(language: Language, tokens: int, count: int, links: int) -> list[Asked]:
    """`count` questions of as many documents of so many tokens: for eight entries, or for a chain of `links`."""
    made = []
    for seed in range(count):
        if links:
            told = chain_document(language, seed, tokens, length=links)
            chain = ask_chain(language, told, seed, links)
            grade = partial(score_chain, expected=chain_entries(told, chain.names[0], links))
            made.append(Asked(told.ids + chain.ids, chain.max_answer_tokens, grade))
        else:
            document = language.document(seed, tokens, max(8, tokens // 60))
            question = language.ask(document, seed, 8)
            marks = partial(score, document=document, names=question.names)
            made.append(Asked(document.ids + question.ids, question.max_answer_tokens, marks))
    return made


def answer(server: Server, language: Language, every: list[Asked]) -> dict[str, Any]:
    """What a server makes of the questions, one after the other; its prompts are cached first."""
    ids, seconds, said, accepted, right, total = [], 0.0, 0, [], 0, 0
    for each in every:
        begun = [server.generate(each.ids, 1)["meta_info"]["e2e_latency"] for _ in range(2)][1]
        reply = server.generate(each.ids, each.most, stop=["\n"])
        told = reply["meta_info"]
        seconds += max(0.0, told["e2e_latency"] - begun)
        said += told["completion_tokens"] - 1
        ids.append(reply["output_ids"])
        accepted.append(told.get("spec_accept_length", 1.0))
        found = each.grade(reply["text"])
        right, total = right + found.right, total + found.total
    return {
        "ids": ids,
        "tokens_per_second": said / seconds,
        "accepted": statistics.mean(accepted),
        "right": right,
        "total": total,
    }


def answers(given: argparse.Namespace, run: Run) -> None:
    """A row per length, server and time of asking."""
    language = Language.load(Path(given.model))
    servers = {}
    for policy, drafts in kinds(given.gpu):
        chosen: dict[str, Any] = {"kv_policy": "full"}
        if policy == OURS:
            chosen = {"kv_policy": OURS, "hetero_keep_ratio": given.keep_ratio, "hetero_dense_below": given.dense_below}
        here = {"grammar_backend": "none", **ON_GPU, **(PLAIN_ON_GPU if policy == PLAIN else {})} if given.gpu else {}
        flags = {"dtype": given.dtype, "max_total_tokens": given.slots, **chosen, **here}
        more = drafting(given.draft_tokens) if drafts else {}
        name = named(drafts, policy)
        servers[name] = Server(given.model, run.log(name.replace(", ", "-")), **flags, **more)
    lists = {tokens: asked(language, tokens, given.questions, given.links) for tokens in given.lengths}
    wanted: dict[tuple[int, int], list[list[int]]] = {}
    for group in groups(servers, not given.gpu):
        run.does(f"start of {', '.join(group)}")
        with up(group):
            for tokens, every in lists.items():
                for time in (1, 2):
                    for name, server in group.items():
                        run.does(f"{name}: {len(every)} questions of {tokens} tokens, asked for time {time}")
                        told = answer(server, language, every)
                        ids = told.pop("ids")
                        same = sum(a == b for a, b in zip(ids, wanted.setdefault((tokens, time), ids), strict=True))
                        row = {"part": "answers", "server": name, "tokens": tokens, "asked": time}
                        print_row(run.keep({**row, **told, "questions": len(every), "same_as_plain": same}))


# ---- speed


def speed(given: argparse.Namespace, run: Run) -> None:
    """A row per case and server; rounds alternate."""
    env = {"SGLANG_SIMULATE_ACC_LEN": str(given.accepted)}
    with tempfile.TemporaryDirectory() as scratch:
        model, profile = shapes.write(Path(scratch) / "llama-8b"), str(index_profile(Path(scratch)))
        cases = [tuple(map(int, case.split("x"))) for case in given.cases]
        slots = int(1.1 * max(batch * (tokens + given.steps) for batch, tokens in cases))
        for group in groups(dict(speed_servers(given, run, model, profile, slots, env)), given.alone):
            run.does(f"start of {', '.join(group)}")
            with up(group):
                for batch, tokens in cases:
                    rng = random.Random(tokens * 1000 + batch)
                    prompts = [random_prompt(rng, tokens) for _ in range(batch)]
                    turns(group, 1, lambda server, prompts=prompts: stream(server, prompts, given.steps))  # type: ignore[misc]
                    waits = turns(group, given.rounds, lambda server, prompts=prompts: gaps(  # type: ignore[misc]
                        stream(server, prompts, given.steps)))  # fmt: skip
                    for name, rounds in waits.items():
                        means = [statistics.mean(each) for each in rounds]
                        row = {"part": "speed", "server": name, "batch": batch, "tokens": tokens}
                        rate = batch / statistics.median(means)
                        told = {"accepted": given.accepted if "drafts" in name else 1.0, "seconds_per_token": means}
                        print_row(run.keep({**row, "tokens_per_second": rate, **told}))


def speed_servers(
    given: argparse.Namespace, run: Run, model: Path, profile: str, slots: int, env: dict[str, str]
) -> Iterator[tuple[str, Server]]:
    """By name, not started."""
    for policy, drafts in kinds(True):
        name, index = named(drafts, policy), {"hetero_index": "directions"} if policy == OURS else {}
        flags = {"max_total_tokens": slots, "max_running_requests": 16, "cuda_graph_max_bs": 8, **index}
        more = drafting(given.draft_tokens) if drafts else {}
        around = {**(env if drafts else {}), **(changed_rows(given.changed_rows) if policy == OURS else {})}
        ratio = "full" if policy == PLAIN else str(given.keep_ratio)
        log = run.log(name.replace(", ", "-"))
        yield name, dummy_server(model, ratio, profile, log, around, **{**flags, **more})


def print_row(row: dict[str, Any]) -> None:
    """One line."""
    what = f"{row.get('batch', 1)} of {row['tokens']:>6}"
    more = f"  {row['right']} of {row['total']} right, {row['same_as_plain']} of {row['questions']} the same" * (
        "right" in row
    )
    print(f"  {row['server']:<20}{what}{row['tokens_per_second']:9.1f} tokens/s, {row['accepted']:.2f} at once{more}")


def main() -> None:
    """A table, and JSON in results/speculation.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speculation", description=__doc__)
    parser.add_argument("part", choices=("answers", "speed"))
    parser.add_argument("--gpu", action="store_true", help="answers: on a GPU, where plain SGLang drafts too")
    parser.add_argument("--model", default=str(RECALL), help="answers: one that answers questions of documents")
    parser.add_argument("--dtype", default="auto", help="answers: float32, where not one token may differ")
    parser.add_argument("--lengths", nargs="+", type=int, default=[800, 4096], help="answers: of documents, in tokens")
    parser.add_argument("--questions", type=int, default=8, help="answers: of each length")
    parser.add_argument("--links", type=int, default=0, help="answers: ask for chains of so many, not for entries")
    parser.add_argument("--dense-below", type=int, help="answers: requests shorter than this are held whole")
    parser.add_argument("--slots", type=int, default=20000, help="answers: of tokens")
    parser.add_argument("--cases", nargs="+", default=["1x32768", "1x131072", "4x32768"], help="speed: BATCHxTOKENS")
    parser.add_argument("--steps", type=int, default=256, help="speed: tokens to generate")
    parser.add_argument("--rounds", type=int, default=3, help="speed")
    parser.add_argument("--accepted", type=float, default=3.0, help="speed: tokens that stay of a verification")
    parser.add_argument("--changed-rows", type=int, default=15, help="speed: that come to a head at once, at most")
    parser.add_argument("--alone", action="store_true", help="speed: one server at a time")
    parser.add_argument("--keep-ratio", type=float, default=0.25)
    parser.add_argument("--draft-tokens", type=int, default=8, help="of a verification, the first included")
    add_options(parser, "speculation")
    add_log_option(parser)
    given = parser.parse_args()
    told = {name: getattr(given, name) for name in ("keep_ratio", "draft_tokens", "dtype", "links")}
    with Run(given, **told) as run:
        (answers if given.part == "answers" else speed)(given, run)
    print("saved", run.save())


if __name__ == "__main__":
    main()
