"""What early exit costs and saves on a GPU: decode steps beside those of the same server without it, alternating.

Random weights of the Llama-3.1-8B shape, and branches of random tensors that batches leave by lot. Where the share is 0
every branch is asked and nobody leaves, which is what asking costs. `bound`: what layers left out would give if a step
took as long as reading the weights of its layers and the head. Batches above --max-batch are not asked. Under
heterocache heads find their rows by key indexes of random directions.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import shapes
from benchmarks.alternation import turns, up
from benchmarks.blind_branches import write_branches
from benchmarks.cases import spread, stream
from benchmarks.dummy import changed_rows, dummy_server, index_profile, random_prompt, whole_slots
from benchmarks.idle import every
from benchmarks.launch import Server
from benchmarks.run import Run, add_log_option, add_options
from benchmarks.streams import Stream, gaps
from hetero_sglang.config import development

KV = ("deferred", "copied")
WARM = 8  # steps of a batch that is not counted: what is recorded or compiled, and the share that has just changed


def main() -> None:
    """A table, and JSON in results/exit_speed.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exit_speed", description=__doc__)
    parser.add_argument("--cases", nargs="+", default=["1x8192", "4x8192", "8x8192", "64x1024"], help="BATCHxTOKENS")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.3], help="of the branches, where they leave")
    parser.add_argument("--layers", nargs="+", type=int, default=[19, 26, 29], help="where branches stand")
    parser.add_argument("--words", type=int, default=4096, help="that a branch knows")
    parser.add_argument("--kv", nargs="+", choices=KV, default=["deferred"])
    parser.add_argument("--max-batch", type=int, default=4)
    parser.add_argument("--policies", nargs="+", default=["full", "0.25"], help="full, or a keep ratio of heterocache")
    parser.add_argument("--changed-rows", type=int, default=15, help="that come to a head at once, at most")
    parser.add_argument("--steps", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    add_options(parser, "exit_speed")
    add_log_option(parser)
    given = parser.parse_args()
    told_of = {
        "layers": given.layers,
        "words": given.words,
        "max_batch": given.max_batch,
        "steps": given.steps,
        "changed_rows": given.changed_rows,
    }
    with Run(given, **told_of) as run, tempfile.TemporaryDirectory() as scratch:
        for policy in given.policies:
            _measure(policy, given, run, Path(scratch))
    print("saved", run.save())


def _measure(policy: str, given: argparse.Namespace, run: Run, scratch: Path) -> None:
    sizes = [tuple(map(int, case.split("x"))) for case in given.cases]
    slots = max(whole_slots(None, batch, tokens + given.steps) for batch, tokens in sizes)
    model, share = shapes.write(scratch / "llama-8b"), scratch / "share"
    share.write_text("0")
    own = {} if policy == "full" else changed_rows(given.changed_rows)
    env = {**own, development.ALLOWED: "1", development.FORCED_EXITS: str(share)}
    room: dict[str, Any] = {"max_total_tokens": slots, "max_running_requests": 2 * max(batch for batch, _ in sizes)}
    if policy != "full":
        room["hetero_index"] = "directions"
    profile = None if policy == "full" else str(index_profile(scratch))
    exits = {
        "hetero_early_exit": write_branches(
            scratch / "exits" / "exits.json", shapes.LLAMA_8B, given.layers, range(given.words)
        ),
        "hetero_exit_agreement": 0.9,
        "hetero_early_exit_max_batch": given.max_batch,
    }
    servers = {"": dummy_server(model, policy, profile, run.log(policy), own, **room)}
    for kv in given.kv:
        flags = {**room, **exits, "hetero_exit_kv": kv}
        servers[kv] = dummy_server(model, policy, profile, run.log(policy, kv), env, **flags)
    run.does(f"{policy}: start of {len(servers)} servers")
    with up(servers):
        for batch, tokens in sizes:
            run.does(f"{policy}: {batch} x {tokens}")
            size = batch, tokens, given.steps, given.rounds
            for row in measure(servers, *size, given.shares, lambda each: share.write_text(str(each))):
                print(line(run.keep({"policy": policy, **row})), flush=True)


def measure(
    servers: dict[str, Server], batch: int, tokens: int, steps: int, rounds: int, shares: Sequence[float],
    leave: Callable[[float], object],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row a server with branches (its name) and share; the one called "" has none. `leave` sets the share."""
    rng = random.Random(tokens * 1000 + batch)
    prompts = [random_prompt(rng, tokens) for _ in range(batch)]

    def streamed(server: Server, count: int = steps) -> list[Stream]:
        return stream(server, prompts, count, every(batch))

    turns(servers, 1, streamed)  # while it prefills, the first requests may end before the last begin
    for share in shares:
        leave(share)
        turns(servers, 1, lambda server: streamed(server, WARM))
        before = {name: told(server) for name, server in servers.items() if name}
        waits = turns(servers, rounds, lambda server: gaps(streamed(server)))
        seconds = {name: statistics.median(spread(own)["step_seconds_all"]) for name, own in waits.items()}
        for name, counted in before.items():
            tokens_run, layers_run = (now - then for now, then in zip(told(servers[name]), counted, strict=True))
            depth = layers_run / tokens_run
            yield {
                "kv": name,
                "share": share,
                "batch": batch,
                "tokens": tokens,
                "step_seconds": seconds[name],
                "without": seconds[""],
                "ratio": seconds[""] / seconds[name],
                "depth": depth,
                "bound": bound(depth),
            }
    for server in servers.values():
        server.flush()


def told(server: Server) -> tuple[int, int]:
    """Tokens that were decoded, and layers run for them."""
    exits = server.stats()["early_exit"]
    return exits["tokens"], exits["layers_run"]


def bound(depth: float, config: dict[str, Any] = shapes.LLAMA_8B) -> float:
    """How much faster a step of a mean `depth` can be, by the bytes of its weights."""
    return shapes.weight_bytes(config) / shapes.weight_bytes(config | {"num_hidden_layers": depth})


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    case = f"{row['policy']:<6}{row['kv']:<9} leave {row['share']:<4g} {row['batch']:>3} x {row['tokens']:>5}"
    text = f"{case}: step {1e3 * row['step_seconds']:7.3f} ms, without {1e3 * row['without']:7.3f} ms"
    return f"{text}  {row['ratio']:.3f}x of {row['bound']:.3f}x, {row['depth']:.2f} layers"


if __name__ == "__main__":
    main()
