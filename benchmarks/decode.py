"""Prefill and decode speed on a GPU: plain SGLang and heterocache on the same card, one server after the other.

Random weights of the Llama-3.1-8B shape. Each case is a batch of requests that stream together: time to the first
token without and with a cached prefix, and seconds per decode step.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import results, shapes
from benchmarks.launch import Server
from benchmarks.streams import Stream, run_together, step_seconds

VOCABULARY = 120000  # ids below the special ones


def measure(server: Server, batch: int, tokens: int, steps: int, rounds: int, cold: bool) -> dict[str, Any]:
    """One case: `batch` requests of `tokens` tokens. The first round prefills them; the others hit the prefix."""
    rng = random.Random(tokens * 1000 + batch)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(tokens)] for _ in range(batch)]
    first, hits, times = None, [], []
    for number in range(rounds + 1):
        tail = [rng.randrange(VOCABULARY) for _ in range(64)] if number else []
        streams = [Stream(server.url, prompt + tail, steps) for prompt in prompts]
        run_together(streams)
        seconds = max(stream.first_token_seconds for stream in streams)
        if number == 0:
            first = seconds if cold else None
            continue
        hits.append(seconds)
        times.append(step_seconds(streams))
    server.flush()
    return {
        "batch": batch,
        "tokens": tokens,
        "first_token_seconds": first,
        "first_token_seconds_prefix_hit": statistics.median(hits),
        "step_seconds": statistics.median(times),
        "step_seconds_all": times,
    }


def main() -> None:
    """A table, and JSON in results/decode.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--cases", nargs="+", default=["1x131072", "1x229376", "8x32768"], help="BATCHxTOKENS")
    parser.add_argument("--policies", nargs="+", default=["full", "0.25"], help="full, or a keep ratio of heterocache")
    parser.add_argument("--profile", help="head profile of the model (required for heterocache)")
    parser.add_argument("--max-total-tokens", type=int, default=300000)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="decode")
    parser.add_argument("--flags", nargs="*", default=[], help="NAME=VALUE server flags for every policy")
    parser.add_argument("--hetero-flags", nargs="*", default=[], help="NAME=VALUE server flags for heterocache")
    parser.add_argument("--log-dir", type=Path, default=None)
    given = parser.parse_args()
    common = {"load_format": "dummy", "skip_tokenizer_init": True, "grammar_backend": "none"}
    common |= {"max_total_tokens": given.max_total_tokens, "cuda_graph_backend_prefill": "disabled"}
    common |= {"cuda_graph_max_bs": 64, "context_length": 262144} | _flags(given.flags)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        model = shapes.write(Path(scratch) / "llama-8b")
        for policy in given.policies:
            flags: dict[str, Any] = {"kv_policy": "full", "attention_backend": "flashinfer"}
            if policy != "full":
                flags = {"kv_policy": "heterocache", "hetero_keep_ratio": policy, "hetero_profile": given.profile}
                flags |= _flags(given.hetero_flags)
            log = given.log_dir / f"{given.name}-{policy}.log" if given.log_dir else None
            with Server(model=model, log=log, **common, **flags) as server:
                for case in given.cases:
                    batch, tokens = map(int, case.split("x"))
                    row = measure(server, batch, tokens, given.steps, given.rounds, cold=True)
                    rows.append({"policy": policy, **row})
                    _show(rows)
                if policy != "full":
                    told = server.stats().items()
                    print({k: v for k, v in told if "fetch" in k or k in ("integrity", "drift_triggers")})
            results.save(given.name, {"rows": rows, "max_total_tokens": given.max_total_tokens})
    print("saved", results.save(given.name, {"rows": rows, "max_total_tokens": given.max_total_tokens}))


def _show(rows: list[dict[str, Any]]) -> None:
    row = rows[-1]
    dense = [r for r in rows if r["policy"] == "full" and (r["batch"], r["tokens"]) == (row["batch"], row["tokens"])]
    ratio = f"{dense[0]['step_seconds'] / row['step_seconds']:5.2f}x" if dense else ""
    print(
        f"{row['policy']:<6} {row['batch']:>3} x {row['tokens']:>6}: step {1e3 * row['step_seconds']:7.2f} ms {ratio}  "
        f"first token {row['first_token_seconds']:6.2f} s, with a prefix hit "
        f"{row['first_token_seconds_prefix_hit']:6.3f} s",
        flush=True,
    )


def _flags(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


if __name__ == "__main__":
    main()
