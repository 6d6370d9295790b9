"""What is lost where a prompt finds keys and values of tokens that were generated under compression.

A real text's true continuation is forced through decode steps; then what comes next in the text is asked for as a
prompt behind both, and scored token by token. By another user, with so many new tokens that all of the prefix is
attended to; by the same user, with few, over the working set that is left; by another user with few, over a set made
of the prefix's index, once the device has lost the prefix. And by each of them after a flush, where all is computed
anew.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.launch import Server
from benchmarks.quality.client import Client
from benchmarks.real.measure import generate
from benchmarks.real.sources import KINDS
from benchmarks.real.texts import HELD_OUT, Text, texts
from benchmarks.real_text import load_tokenizer
from benchmarks.run import Run, add_options, named
from hetero_sglang.errors import HeteroError, ending_the_process

MANY, FEW = 576, 64  # new tokens: more and fewer than an append may have
SLOTS = 12_000  # so that another text takes a prefix's place on the device
USERS = {"the same user": FEW, "another user": MANY, "by the index": FEW}  # in this order: the first has the set
# By --hetero-append: where `sparse` may, it makes a set of the index for many new tokens too.
ASKING = {"auto": ["the same user", "another user"], "sparse": ["by the index"]}


def main() -> None:
    """A line for each ratio and user, and JSON in results/generated_tokens.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generated_tokens", description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="checkpoint folder")
    add("--ratios", nargs="+", default=["0.12", "0.25"])
    add("--appends", nargs="+", choices=ASKING, default=list(ASKING), help="ways of --hetero-append (all)")
    add("--prompt", type=int, default=3072)
    add("--generated", type=int, default=1024)
    add("--texts", type=int, default=2, help="of each kind (2)")
    add("--kinds", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    add("--server-flags", nargs="*", default=[], help="NAME=VALUE")
    add_options(parser, "generated_tokens")
    given = parser.parse_args()
    with ending_the_process(), Run(given, prompt=given.prompt, generated=given.generated) as run:
        tokens = given.prompt + given.generated + MANY
        chosen = texts(given.kinds, HELD_OUT, load_tokenizer(given.model), tokens, given.texts, given.prompt)
        for ratio, append in product(given.ratios, given.appends):
            flags = {"hetero_keep_ratio": ratio, "hetero_append": append, "max_total_tokens": SLOTS}
            flags |= {"enable_custom_logit_processor": True, **named(given.server_flags)}
            with Server(given.model, kv_policy="heterocache", **flags) as server:
                lost: dict[str, list[np.ndarray]] = {user: [] for user in ASKING[append]}
                for number, text in enumerate(chosen):
                    run.does(f"{ratio}, {append}: {text.name}")
                    for user, each in _lost(server, text, chosen[number - 1], given.generated, list(lost)).items():
                        lost[user].append(each)
                stats = server.stats()
            ways = {name: stats[name] for name in ("appended_tokens", "resumed_requests", "restored_requests")}
            for user, parts in lost.items():
                each = np.concatenate(parts)
                told = {"nats": float(each.mean()), "off": float(np.abs(each).mean()), "tokens": len(each)}
                run.keep({"ratio": ratio, "user": user, **told, **ways})
                print(f"{ratio} {user:<14} {told['nats']:+.4f} nats a token, {told['off']:.4f} either way", flush=True)
        print("saved", run.save())


def _lost(server: Server, text: Text, other: Text, generated: int, users: list[str]) -> dict[str, np.ndarray]:
    """By user, how much more each of the new tokens costs than where all is computed anew, in nats [n]."""
    told, ids = text.prompt + generated, list(text.ids)
    forced = ids[text.prompt : told]
    begins = {"the same user": told, "another user": told, "by the index": told - MANY}  # no set ends near the last
    server.flush()
    with tempfile.TemporaryDirectory() as folder:
        params = {"forced": forced, "record": str(Path(folder, "scores.npy"))}
        made = generate(Client(server.url), ids[: text.prompt], forced, params)
    if made != forced:
        raise HeteroError(f"The server left the text ({text.name}): see its log.")
    found = {}
    for user in users:
        prefix = begins[user]
        if user == "by the index":
            server.generate(list(other.ids), 1)
        found[user] = _scores(server, ids[: prefix + USERS[user]], prefix)
    server.flush()
    first = told - MANY
    anew = _scores(server, ids[: told + MANY], first)
    return {user: anew[begins[user] - first :][: len(each)] - each for user, each in found.items()}


def _scores(server: Server, ids: list[int], prefix: int) -> np.ndarray:
    """Log likelihoods of the tokens behind the first `prefix`: [n]."""
    asked = {"return_logprob": True, "logprob_start_len": prefix - 1}
    found = server.generate(ids, 1, request=asked)["meta_info"]["input_token_logprobs"]
    scores = [value for value, *_ in found[1:]]  # the token that is asked from has none
    assert len(scores) == len(ids) - prefix
    return np.array(scores)


if __name__ == "__main__":
    main()
