"""Tensor-parallel ranks under load in tight memory: whether all are answered, and as plain SGLang at the same size.

Two loads: `short`, many users at once with documents of 120 to 400 tokens, which stay whole and still crowd the hot
pool; `long`, 64 users of eight shared documents, which are compressed. Answers end at their first newline; the tokens
after it (`tokens`: all of them) hang on the last bit, which depends on how SGLang batches: plain SGLang's own second
run tells how much.
"""

from __future__ import annotations

import argparse
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.launch import RECALL, Server
from benchmarks.recall import Language, score
from benchmarks.recall.document import Document
from benchmarks.recall.question import Question

PATIENCE = 300  # seconds for an answer
RETRACT = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"}
# Beside the ratio: nothing; chunks and forced retractions; a host size that binds the token slots
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "plainly": ({}, {}),
    "retract": ({"chunked_prefill_size": 128, "page_size": 16}, RETRACT),
    "host": ({"max_total_tokens": None, "hetero_host_size": 0.03}, {}),
}


@dataclass(frozen=True)
class User:
    """A prompt of `document` and `question`, and how many tokens to generate."""

    document: Document
    question: Question
    new: int

    @property
    def ids(self) -> list[int]:
        return self.document.ids + self.question.ids


def short(language: Language, users: int) -> list[User]:
    made = []
    for seed in range(users):
        document = language.document(100 + seed, random.Random(seed).randint(120, 400), 5)
        made.append(User(document, language.ask(document, seed, 4), 64))
    return made


def long(language: Language, users: int, tokens: int, new: int) -> list[User]:
    documents = [language.document(500 + index, tokens, tokens // 75) for index in range(8)]
    return [User(documents[i % 8], language.ask(documents[i % 8], i, 8), new) for i in range(users)]


def ask(server: Server, users: list[User]) -> list[dict[str, Any] | None]:
    """Everybody at once; None for who was not answered."""

    def one(user: User) -> dict[str, Any] | None:
        sampling = {"temperature": 0, "max_new_tokens": user.new, "ignore_eos": True}
        try:
            return server.post("/generate", {"input_ids": user.ids, "sampling_params": sampling}, timeout=PATIENCE)
        except OSError:
            return None

    with ThreadPoolExecutor(len(users)) as pool:
        return list(pool.map(one, users))


def answer(reply: dict[str, Any] | None) -> str | None:
    return reply["text"].split("\n")[0] if reply else None


def row(name: str, users: list[User], got: list[Any], reference: list[Any] | None) -> dict[str, Any]:
    """How many were answered, are right, and are as the reference has them."""
    marks = [score(answer(r) or "", u.document, u.question.names) for r, u in zip(got, users, strict=True)]
    made: dict[str, Any] = {
        "name": name,
        "users": len(users),
        "answered": sum(r is not None for r in got),
        "entries_right": sum(mark.right for mark in marks),
        "entries": sum(mark.total for mark in marks),
    }
    if reference is not None:
        pairs = list(zip(got, reference, strict=True))
        made["same_answers"] = sum(answer(a) == answer(b) for a, b in pairs)
        made["same_tokens"] = sum(bool(a and b) and a["output_ids"] == b["output_ids"] for a, b in pairs)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_ranks", description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--model", type=Path, default=RECALL)
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.6, 0.7, 0.8])
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=["plainly"])
    parser.add_argument("--users", type=int, default=60, help="of the short load (default: 60)")
    parser.add_argument("--long", type=int, default=0, help="tokens of the long load's documents (default: none)")
    parser.add_argument("--new", type=int, default=70, help="tokens that the long load generates (default: 70)")
    parser.add_argument("--slots", type=int, default=20000)
    parser.add_argument("--server-flags", default="", help="more flags of every server, as NAME=VALUE")
    parser.add_argument("--out", default="two-ranks")
    given = parser.parse_args()
    language = Language.load(given.model)
    loads = {"short": short(language, given.users)}
    if given.long:
        loads["long"] = long(language, 64, given.long, given.new)
    more = dict(word.split("=", 1) for word in given.server_flags.split())
    common = {"model": given.model, "tp_size": given.ranks, "max_total_tokens": given.slots, **more}
    rows: list[dict[str, Any]] = []
    references: dict[str, list[Any]] = {}
    with Server(**common) as server:
        for name, users in loads.items():
            references[name] = ask(server, users)
            rows.append(row(f"plain, {name}", users, references[name], None))
            rows.append(row(f"plain again, {name}", users, ask(server, users), references[name]))
    for variant in given.variants:
        flags, env = VARIANTS[variant]
        for ratio in given.ratios:
            ours = {**common, **flags, "kv_policy": "heterocache", "hetero_keep_ratio": ratio}
            with Server(env=env, **ours) as server:
                for name, users in loads.items():
                    server.flush()
                    rows.append(row(f"{ratio:g} {variant}, {name}", users, ask(server, users), references[name]))
                    rows[-1] |= {"stats": server.stats()}
    for made in rows:
        print({key: value for key, value in made.items() if key != "stats"})
    print("saved", results.save(given.out, {"flags": more, "rows": rows}))


if __name__ == "__main__":
    main()
