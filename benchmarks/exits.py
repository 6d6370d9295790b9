"""Early exit beside plain SGLang, in one run: tokens a second by batch size, how deep tokens ran, whether they agree.

Prompts are held-out text of the real benchmarks. Servers take turns. What a server with branches has said is read by
the plain one in a prefill, which says for each token what full depth would have chosen, and how likely the token was:
the latter, less that of the plain server's own greedy words, is the loss."""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.alternation import turns, up
from benchmarks.launch import Server
from benchmarks.run import Run, add_log_option, add_options, named

PLAIN = "SGLang"
SETTLED = 2  # tokens that are not timed: those of the prefill, and a warm step


def decoded(server: Server, prompts: list[list[int]], count: int) -> float:
    """Tokens a second of all prompts at once, behind their prefill: all have it in the radix cache."""
    for each in prompts:
        server.generate(each, 1)

    def seconds(many: int) -> float:
        begun = time.monotonic()
        with ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(lambda each: server.generate(each, many, ignore_eos=True), prompts))
        return time.monotonic() - begun

    settled = seconds(SETTLED)
    return len(prompts) * (count - SETTLED) / (seconds(count) - settled)


def read(plain: Server, prompt: list[int], said: list[int]) -> tuple[int, float]:
    """Of the tokens said behind a prompt, how many full depth would have chosen, and their negative log likelihood."""
    asks = {"return_logprob": True, "logprob_start_len": len(prompt) - 1, "top_logprobs_num": 1}
    meta = plain.generate(prompt + said, 1, asks)["meta_info"]
    first = [each[0][1] for each in meta["input_top_logprobs"][1:]]
    loss = -sum(each[0] for each in meta["input_token_logprobs"][1:])
    return sum(mine == full for mine, full in zip(said, first, strict=True)), loss


def quality(server: Server, plain: Server, prompts: list[list[int]], count: int) -> dict[str, float]:
    """Agreement with full depth at every token, and the mean loss of what was said."""
    agreed, loss, tokens = 0, 0.0, 0
    for prompt in prompts:
        said = server.generate(prompt, count, ignore_eos=True)["output_ids"]
        mine, nats = read(plain, prompt, said)
        agreed, loss, tokens = agreed + mine, loss + nats, tokens + len(said)
    return {"agreement": agreed / tokens, "loss": loss / tokens}


def depth(server: Server) -> dict[str, Any] | None:
    """What the server tells of its exits."""
    found: dict[str, Any] | None = server.stats().get("early_exit")
    return found


def prompts_of(model: Path, count: int, tokens: int) -> list[list[int]]:
    """Held-out documentation."""
    from transformers import AutoTokenizer

    from benchmarks.real.sources import KINDS
    from benchmarks.real.texts import HELD_OUT, chosen, compose

    tokenizer = AutoTokenizer.from_pretrained(model)
    kind = "documentation"
    texts = compose(kind, chosen(kind, HELD_OUT, KINDS[kind]()), tokenizer, tokens, count)
    return [list(text.ids[:tokens]) for text in texts]


def main() -> None:
    """A row a server and batch size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exits", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("exits", type=Path, help="branches, as `hetero-sglang exits train` writes them")
    parser.add_argument("--agreements", type=float, nargs="+", default=[0.99])
    parser.add_argument("--kv", nargs="+", default=["deferred"], help="deferred, copied")
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--max-batch", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=512, help="of a prompt")
    parser.add_argument("--count", type=int, default=128, help="tokens that are said")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flags", nargs="*", default=[], metavar="NAME=VALUE", help="of all servers")
    add_options(parser, "exits")
    add_log_option(parser)
    given = parser.parse_args()
    flags: dict[str, Any] = named(given.flags)
    prompts = prompts_of(given.model, max(given.prompts, *given.batches), given.tokens)
    servers = {PLAIN: Server(given.model, **flags)}
    for kv in given.kv:
        for agreement in given.agreements:
            exits = {"hetero_early_exit": given.exits, "hetero_exit_agreement": agreement, "hetero_exit_kv": kv}
            name = f"{kv}, {agreement:g}"
            servers[name] = Server(given.model, **flags, **exits, hetero_early_exit_max_batch=given.max_batch)
    with Run(given, model=given.model.name, tokens=given.tokens, count=given.count) as run, up(servers):
        for name, server in servers.items():
            run.does(f"what {name} says")
            row = {"name": name, **quality(server, servers[PLAIN], prompts[: given.prompts], given.count)}
            if name != PLAIN:
                row |= {"exits": depth(server)}
            print(run.keep(row), flush=True)
        for batch in given.batches:
            run.does(f"batches of {batch}")
            found = turns(servers, given.rounds, partial(decoded, prompts=prompts[:batch], count=given.count))
            for name, rates in found.items():
                ratios = [mine / plain for mine, plain in zip(rates, found[PLAIN], strict=True)]
                row = {"name": name, "batch": batch, "tokens_a_second": rates, "ratio": statistics.median(ratios)}
                print(run.keep(row), flush=True)


if __name__ == "__main__":
    main()
