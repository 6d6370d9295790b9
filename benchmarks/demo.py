"""`make demo`: a multi-turn session on a long document against a real server with two-tier KV."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.launch import RECALL, Server
from benchmarks.recall import Document, Language, Session, ask, score


def main() -> None:
    """Start a server, ask three questions about one document, print answers, truth and what it cost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=main.__doc__)
    parser.add_argument("--tokens", type=int, default=8192, help="length of the document (default: 8192)")
    parser.add_argument("--turns", type=int, default=3, help="questions (default: 3)")
    parser.add_argument("--names", type=int, default=8, help="entries asked for at a time, 1 to 8 (default: 8)")
    parser.add_argument("--keep-ratio", type=float, default=0.5, help="device KV per token (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    language = Language.load(RECALL)
    document = language.document(given.seed, given.tokens, max(given.names, given.tokens // 100))
    print(f"starting a server of {RECALL.name} with --kv-policy heterocache --hetero-keep-ratio {given.keep_ratio} ...")
    with Server(kv_policy="heterocache", hetero_keep_ratio=given.keep_ratio) as server:
        print(f"up after {server.started_in:.0f} s, log {server.log}\n")
        lines = server.log.read_text(errors="replace").splitlines()
        first = next(i for i, line in enumerate(lines) if ": keep ratio" in line)
        print("\n".join([lines[first].split("] ", 1)[-1], *lines[first + 1 : first + 7]]))
        converse(server, language, document, given.turns, given.names, given.seed)


def converse(server: Server, language: Language, document: Document, turns: int, names: int, seed: int) -> None:
    """Hold the session and print the summary."""
    session, right, total = Session(document), 0, 0
    for turn in range(turns):
        question = language.ask(document, seed + turn, names)
        reply = ask(server.url, session.prompt_ids(question), question.max_answer_tokens)
        session.add(question, reply.text, reply.ids)
        result = score(reply.text, document, question.names)
        right, total = right + result.right, total + result.total
        print(f"\nturn {turn + 1}: {question.text.strip().splitlines()[0]}")
        print(f"  answer:{reply.text.rstrip()}")
        print(f"  truth: {language.answer(document, question.names).rstrip()}")
        print(f"  {result} entries exact; {reply.meta['cached_tokens']} of {reply.meta['prompt_tokens']} tokens cached")
    stats = server.stats()
    print(f"\nexact entries        {right}/{total} ({100 * right / total:.1f}%)")
    print(tiers(stats))
    print(f"drift triggers       {stats['drift_triggers']} in {stats['drift_checks']} looks")
    print(f"rows fetched         {stats['fetched_rows']}, {stats['late_rows']} late")
    lost = stats["failed_rankings"] + stats["refused_rankings"]
    print(f"anchors ranked       {stats['anchor_refreshes']}, rankings lost: {lost}")
    print(f"integrity            {stats['integrity']}")


def tiers(stats: dict[str, Any]) -> str:
    """What lies where."""
    device = (stats["resident_bytes"] + stats["hot_bytes"] + stats["index_bytes"]) / stats["token_slots"]
    dense = (stats["resident_bytes"] + stats["host_bytes"]) / stats["token_slots"]
    return (
        f"device KV            {device:.0f} bytes a token, dense {dense:.0f} ({device / dense:.2f})\n"
        f"cached now           {stats['token_slots_written']} tokens in both tiers"
    )


if __name__ == "__main__":
    main()
