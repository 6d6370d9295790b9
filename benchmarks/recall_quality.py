"""Entries right under heterocache, with and without retrieval, as a share of what plain SGLang gets right."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks import results
from benchmarks.launch import RECALL, Server
from benchmarks.quality.ratios import parse_ratios
from benchmarks.recall import Language, evaluate


def measure(language: Language, lengths: list[int], documents: int, seed: int, **flags: Any) -> dict[str, Any]:
    """Three turns of eight-name questions on shared documents of each length."""
    row: dict[str, Any] = {"flags": flags, "lengths": {}}
    with Server(**flags) as server:
        before: dict[str, Any] = {}
        for tokens in lengths:
            got = evaluate(server.url, language, tokens, documents=documents, turns=3, names=8, seed=seed)
            entry: dict[str, Any] = {"right": got.score.right, "total": got.score.total}
            if flags["kv_policy"] != "full":
                stats = server.stats()
                names = ("drift_triggers", "anchor_refreshes", "fetched_rows", "late_rows")
                entry |= {name: stats[name] - before.get(name, 0) for name in names}
                entry["integrity"] = stats["integrity"]
                before = stats
            row["lengths"][tokens] = entry
            print(f"  {tokens} tokens: {entry}", flush=True)
    return row


def main() -> None:
    """Plain SGLang, then the floor + 0.05 and 0.5, each with retrieval on and off."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recall_quality", description=main.__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--ratios", nargs="+", default=["floor+0.05", "0.5"])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    language = Language.load(RECALL)
    ratios = parse_ratios(given.ratios, str(RECALL))
    shared = (language, given.lengths, given.documents, given.seed)
    print("full")
    full = measure(*shared, kv_policy="full")
    rows = [full]
    for ratio in ratios:
        for threshold in (0.9, 0.0):
            print(f"keep ratio {ratio}, retrieval {'on' if threshold else 'off'}")
            flags: dict[str, Any] = {
                "hetero_keep_ratio": ratio,
                "hetero_drift_threshold": threshold,
                "hetero_index": "none",
            }
            rows.append(measure(*shared, kv_policy="heterocache", **flags))
            for tokens, entry in rows[-1]["lengths"].items():
                entry["of_full"] = entry["right"] / full["lengths"][tokens]["right"]
    print(f"\n{'keep ratio':<11}{'retrieval':<10}" + "".join(f"{n:>10}" for n in given.lengths))
    for row in rows:
        flags = row["flags"]
        label = f"{flags.get('hetero_keep_ratio', 'full'):<11}"
        label += f"{'' if row is full else 'on' if flags['hetero_drift_threshold'] else 'off':<10}"
        print(label + "".join(f"{e['right']:>6}/{e['total']:<3}" for e in row["lengths"].values()))
    print("saved", results.save("recall-cpu", {"rows": rows}))


if __name__ == "__main__":
    main()
