"""What is lost where a prompt finds keys and values of tokens that were generated under compression.

A real text's true continuation is forced through decode steps; then what comes next in the text is asked for as a
prompt behind both, and scored token by token: by another user (with so many new tokens that all of the prefix is
attended to), by the same user (with few, over the working set that is left), and by either after a flush, where all
is computed anew.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.launch import Server
from benchmarks.quality.client import Client
from benchmarks.real.measure import generate
from benchmarks.real.sources import KINDS
from benchmarks.real.texts import HELD_OUT, Text, texts
from benchmarks.real_text import load_tokenizer
from benchmarks.run import Run, add_options, named
from hetero_sglang.errors import HeteroError, ending_the_process

OTHER, SAME = 576, 64  # new tokens: more and fewer than an append may have


def main() -> None:
    """A line a ratio and user, and JSON in results/generated_tokens.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generated_tokens", description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="checkpoint folder")
    add("--ratios", nargs="+", default=["0.12", "0.25"])
    add("--prompt", type=int, default=3072)
    add("--generated", type=int, default=1024)
    add("--texts", type=int, default=2, help="of each kind (2)")
    add("--kinds", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    add("--server-flags", nargs="*", default=[], help="NAME=VALUE")
    add_options(parser, "generated_tokens")
    given = parser.parse_args()
    with ending_the_process(), Run(given, prompt=given.prompt, generated=given.generated) as run:
        tokens = given.prompt + given.generated + OTHER
        chosen = texts(given.kinds, HELD_OUT, load_tokenizer(given.model), tokens, given.texts, given.prompt)
        for ratio in given.ratios:
            flags = {"hetero_keep_ratio": ratio, "enable_custom_logit_processor": True, **named(given.server_flags)}
            with Server(given.model, kv_policy="heterocache", max_total_tokens=40_000, **flags) as server:
                rows = [row for text in chosen for row in _text(server, text, given.generated)]
                stats = server.stats()
            for user in ("another user", "the same user"):
                lost = np.concatenate([row["lost"] for row in rows if row["user"] == user])
                told = {"nats": float(lost.mean()), "off": float(np.abs(lost).mean()), "tokens": len(lost)}
                run.keep({"ratio": ratio, "user": user, **told, "appended": stats["appended_tokens"]})
                print(f"{ratio} {user:<14} {told['nats']:+.4f} nats a token, {told['off']:.4f} either way", flush=True)
        print("saved", run.save())


def _text(server: Server, text: Text, generated: int) -> list[dict[str, Any]]:
    """By user, how much more each token costs than where all is computed anew."""
    told, ids, rows = text.prompt + generated, list(text.ids), []
    forced = ids[text.prompt : told]
    for user, count in (("another user", OTHER), ("the same user", SAME)):
        scores = []
        for reused in (True, False):
            server.flush()
            if reused:
                with tempfile.TemporaryDirectory() as folder:
                    params = {"forced": forced, "record": str(Path(folder, "scores.npy"))}
                    made = generate(Client(server.url), ids[: text.prompt], forced, params)
                if made != forced:
                    raise HeteroError(f"The server left the text ({text.name}): see its log.")
            scores.append(_scores(server, ids[: told + count], told))
        rows.append({"user": user, "lost": scores[1] - scores[0]})
    return rows


def _scores(server: Server, ids: list[int], prefix: int) -> np.ndarray:
    """Log likelihoods of the tokens behind `prefix` and one more: [n]."""
    asked = {"return_logprob": True, "logprob_start_len": prefix}
    found = server.generate(ids, 1, request=asked)["meta_info"]["input_token_logprobs"]
    return np.array([value for value, *_ in found if value is not None])


if __name__ == "__main__":
    main()
