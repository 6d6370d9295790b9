"""Greedy tokens of heterocache on a GPU, eager and with CUDA graphs, against those of its torch engine on a CPU.

Answers to questions, which do not hang on the last bit, with rows fetched as pivots drift; steps wait for them, so
that every run fetches the same. `--write` collects the CPU's tokens; without it they are compared on a GPU.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.launch import ROOT, Server
from benchmarks.recall import Language

REFERENCE = results.FOLDER / "device-identity-cpu.json"
FLAGS = {"hetero_keep_ratio": 0.3, "hetero_dense_below": 1200, "hetero_window": 32}
MODEL = ROOT / "assets" / "recall-chains-8m"
MODES: dict[str, dict[str, Any]] = {"graph": {}, "eager": {"disable_cuda_graph": True}}


def collect(count: int, flags: dict[str, Any], log: str | None) -> tuple[list[list[int]], dict[str, Any]]:
    """Output ids of `count` questions about documents of 600 to 3000 tokens, and the server's counters."""
    language, rng, outputs = Language.load(MODEL), random.Random(0), []
    waits = {"HETERO_WAIT_FOR_FETCH": "1"}
    with Server(MODEL, log=log, kv_policy="heterocache", env=waits, **FLAGS, **flags) as server:
        for number in range(count):
            tokens = rng.choice((600, 1300, 2000, 3000))
            document = language.document(number, tokens, tokens // 60)
            question = language.ask(document, number, rng.randint(1, 8))
            reply = server.generate(document.ids + question.ids, question.max_answer_tokens, stop=["\n"])
            outputs.append(reply["output_ids"])
        return outputs, server.stats()


def main() -> None:
    """Collect, or compare and print how many are identical."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device_identity", description=__doc__)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="collect the reference on a machine without a GPU")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--flags", nargs="*", default=[], help="NAME=VALUE server flags")
    parser.add_argument("--log-dir", type=Path, default=None)
    given = parser.parse_args()
    flags: dict[str, Any] = dict(word.split("=", 1) for word in given.flags)
    if given.write:
        outputs, stats = collect(given.requests, flags, None)
        told = {name: stats[name] for name in ("compressed_requests", "drift_triggers", "fetched_rows", "integrity")}
        print(told, results.save(REFERENCE.stem, {"flags": FLAGS, "told": told, "outputs": outputs}))
        return
    wanted = json.loads(REFERENCE.read_text())["outputs"][: given.requests]
    rows = []
    for mode in given.modes:
        log = str(given.log_dir / f"identity-{mode}.log") if given.log_dir else None
        outputs, stats = collect(len(wanted), {**flags, **MODES[mode]}, log)
        same = sum(one == other for one, other in zip(wanted, outputs, strict=True))
        told = {name: stats[name] for name in ("compressed_requests", "drift_triggers", "fetched_rows", "integrity")}
        rows.append({"mode": mode, "identical": same, "requests": len(wanted), **told})
        print(f"{mode}: {same} of {len(wanted)} identical, {told}", flush=True)
        for number, (one, other) in enumerate(zip(wanted, outputs, strict=True)):
            if one != other:
                print("  differs:", number, one, other)
        results.save("device-identity", {"rows": rows})


if __name__ == "__main__":
    main()
