"""`python -m benchmarks.programs`: programs of SGLang's frontend language against a real server."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from urllib.error import URLError

from benchmarks.launch import RECALL, Server
from benchmarks.recall import Language
from hetero_sglang.errors import HeteroError, ending_the_process


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a multi-document question, a tree of thought and an agent, and say what they got right and what it took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.programs", description=main.__doc__)
    add = parser.add_argument
    add("--url", help=f"of a running server of {RECALL.name}; left out, one is started")
    add("--kv-policy", default="heterocache", help="of the server that is started (default: heterocache)")
    add("--keep-ratio", type=float, help="device KV per token of that server (default: the server's own)")
    add("--tokens", type=int, default=4096, help="length of a document (default: 4096)")
    add("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with ending_the_process():
        if given.url:
            return run(given.url, given.tokens, given.seed)
        print(f"starting a server of {RECALL.name} with --kv-policy {given.kv_policy} ...", flush=True)
        with Server(kv_policy=given.kv_policy, hetero_keep_ratio=given.keep_ratio) as server:
            print(f"up after {server.started_in:.0f} s, log {server.log}")
            run(server.url, given.tokens, given.seed)


def run(url: str, tokens: int, seed: int) -> None:
    """All programs, one after another. Raises HeteroError if no server is there."""
    import sglang as sgl  # here, so that --help and wrong flags answer at once

    from . import agent, multi_document, tree_of_thought

    language = Language.load(RECALL)
    try:
        backend = sgl.RuntimeEndpoint(url)
    except (URLError, OSError) as error:
        raise HeteroError(f"No server answers at {url} ({error!r}): start one, or leave --url out.") from error
    for program in (multi_document, tree_of_thought, agent):
        begun = time.perf_counter()
        outcome = program.run(backend, language, tokens, seed)
        print(f"\n{outcome}; {time.perf_counter() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    main()
