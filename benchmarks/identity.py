"""Greedy tokens of `--kv-policy heterocache` against `--kv-policy full`, request by request.

Where the policy keeps every row (keep ratio 1, or requests shorter than --hetero-dense-below) not one token may
differ. Requests that run alone are of every kind; those that run eight at once are questions, whose answers do not
hang on the last bit: how SGLang batches them depends on time, and its own CPU results depend on the batch.
"""

from __future__ import annotations

import argparse
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks import results
from benchmarks.launch import RECALL, Server
from benchmarks.recall import Language


@dataclass(frozen=True)
class Case:
    """One request; `alone` ones run in order, the others eight at a time."""

    kind: str
    ids: list[int]
    max_new: int
    alone: bool


def cases(language: Language, count: int, limit: int, seed: int) -> list[Case]:
    """`count` varied requests of 1 to `limit` tokens, generated ones included."""
    rng = random.Random(seed)
    made: list[Case] = []
    document = language.document(seed, min(limit, 8192) - 200, 60)
    while len(made) < count:
        kind = ("any", "prefix", "question", "question")[len(made) % 4]
        new = rng.randint(4, 24)
        if kind == "any":  # any slice of text, any length, most of them short
            length = int(rng.choice((1, 2, 17, 64, 300, 1000, limit)) * rng.uniform(0.5, 1)) or 1
            start = rng.randrange(len(document.ids))
            ids = (document.ids[start:] + document.ids)[: min(length, limit - new - 1)]
            made.append(Case(kind, ids, new, alone=True))
        elif kind == "prefix":  # same beginning, another end
            shared = document.ids[: rng.choice((16, 160, 800, 2400, 6400))][: limit - 120]
            tail = language.ask(document, rng.randrange(1 << 20), rng.randint(1, 4))
            made.append(Case(kind, shared + tail.ids, new, alone=True))
        else:
            tokens = min(rng.choice((150, 400, 700, 1500, 3000)), limit - 120)
            asked = language.document(rng.randrange(1 << 20), tokens, max(3, tokens // 60))
            question = language.ask(asked, seed, rng.randint(1, min(8, len(asked.entries))))
            made.append(Case(kind, asked.ids + question.ids, question.max_answer_tokens, alone=False))
    return made


def collect(server: Server, requests: list[Case]) -> list[list[int]]:
    """Output ids of every request."""

    def one(case: Case) -> list[int]:
        stop: dict[str, Any] = {} if case.alone else {"stop": ["\n"]}
        return server.generate(case.ids, case.max_new, **stop)["output_ids"]

    outputs: dict[int, list[int]] = {i: one(c) for i, c in enumerate(requests) if c.alone}
    together = [i for i, c in enumerate(requests) if not c.alone]
    with ThreadPoolExecutor(8) as pool:
        outputs.update(zip(together, pool.map(lambda i: one(requests[i]), together), strict=True))
    return [outputs[i] for i in range(len(requests))]


def differing(requests: list[Case], wanted: list[list[int]], got: list[list[int]]) -> list[dict[str, Any]]:
    """The requests whose output ids are not the wanted ones."""
    return [
        {"kind": c.kind, "tokens": len(c.ids), "wanted": w, "got": g}
        for c, w, g in zip(requests, wanted, got, strict=True)
        if w != g
    ]


def compare(
    language: Language, count: int, limit: int, seed: int, env: dict[str, str] | None, flags: dict[str, Any], ours: Any
) -> dict[str, Any]:
    """Run the same requests on both policies; `ours` are the flags of heterocache."""
    requests = cases(language, count, limit, seed)
    with Server(kv_policy="full", env=env, **flags) as server:
        wanted = collect(server, requests)
    with Server(kv_policy="heterocache", env=env, **flags, **ours) as server:
        got = collect(server, requests)
        stats = server.stats()
        retracted = server.log.read_text(errors="replace").count("Testing retraction")
    different = differing(requests, wanted, got)
    return {
        "flags": {**flags, **ours, **(env or {})},
        "requests": count,
        "identical": count - len(different),
        "different": different,
        "compressed": stats["compressed_requests"],
        "retractions": retracted,
        "integrity": stats["integrity"],
    }


def main() -> None:
    """Combinations of page size, chunked prefill (-1: off) and forced retraction; a table, and JSON in results/."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.identity", description=__doc__)
    parser.add_argument("--requests", type=int, default=40, help="per combination (default: 40)")
    parser.add_argument("--combinations", type=int, default=6, help="of page size, chunking and so on (default: 6)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    language = Language.load(RECALL)
    rows = []
    short = {"hetero_keep_ratio": 0.5, "hetero_dense_below": 4096}
    all_rows, retract = {"hetero_keep_ratio": 1.0}, {"SGLANG_TEST_RETRACT": "1"}
    plans = [
        (16, 512, retract, all_rows, 2000),
        (1, -1, None, short, 4000),
        (16, 512, None, all_rows, 8192),
        (1, 512, None, all_rows, 8192),
        (16, -1, None, all_rows, 8192),
        (1, 512, retract, short, 2000),
    ][: given.combinations]
    for index, (page, chunk, env, ours, limit) in enumerate(plans):
        flags = {"page_size": page, "chunked_prefill_size": chunk}
        row = compare(language, given.requests, limit, given.seed + index, env, flags, ours)
        rows.append(row)
        print(f"{row['identical']}/{row['requests']} identical, {row['retractions']} retractions: {row['flags']}")
        for case in row["different"]:
            print("  differs:", case)
        results.save("identity-cpu", {"rows": rows})
    total, same = sum(r["requests"] for r in rows), sum(r["identical"] for r in rows)
    print(f"identical: {same} of {total}")
    print("saved", results.save("identity-cpu", {"rows": rows, "identical": same, "requests": total}))


if __name__ == "__main__":
    main()
