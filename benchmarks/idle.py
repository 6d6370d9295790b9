"""What heterocache costs where nothing is compressed, on a GPU: decode steps beside plain SGLang's, alternating.

Random weights of the Llama-3.1-8B shape. `short` requests stay below --hetero-dense-below of a server that would
compress longer ones; `whole` ones go to a server that keeps every row (keep ratio 1). The servers of a part are up
together, unless --alone says that a case fills the card.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import shapes
from benchmarks.alternation import groups, turns, up
from benchmarks.cases import spread, stream
from benchmarks.dummy import add_profile_option, dummy_server, layout_of, random_prompt, whole_slots
from benchmarks.launch import Server
from benchmarks.run import Run, add_log_option, add_options
from benchmarks.streams import Stream, gaps
from hetero_sglang.config.layout import HeadLayout

AT_ONCE = 8  # messages per step that this process reads without falling behind
DENSE_BELOW = 2048  # at least: the smallest head's rows have to hold sinks and window


@dataclass(frozen=True)
class Size:
    """`batch` requests of `tokens` tokens that come to `length` each."""

    batch: int
    tokens: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch} x {self.tokens}"


@dataclass(frozen=True)
class Part:
    """Cases of one keep ratio, none of them compressed; `flags` of the heterocache server."""

    name: str
    policy: str
    layout: HeadLayout
    sizes: list[Size]
    flags: dict[str, Any]

    def slots(self, policy: str, sizes: list[Size]) -> int:
        """Token slots that every one of `sizes` needs."""
        layout = None if policy == "full" else self.layout
        return max(whole_slots(layout, size.batch, size.length) for size in sizes)

    def servers(self, model: Path, profile: str, run: Run) -> dict[str, Server]:
        """Of plain SGLang and of heterocache, not started; one holds no more than the cases need."""
        made: dict[str, Server] = {}
        for policy, flags in (("full", {}), (self.policy, self.flags)):
            slots, log = self.slots(policy, self.sizes), run.log(self.name, policy)
            most = 2 * max(size.batch for size in self.sizes)
            room = dict(flags, max_total_tokens=slots, max_running_requests=most)
            made[policy] = dummy_server(model, policy, profile, log, **room)
        return made


def main() -> None:
    """A table, and JSON in results/idle.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__)
    parser.add_argument("--short", nargs="*", default=["1x1024", "8x1024", "64x1024"], help="BATCHxTOKENS")
    parser.add_argument("--short-keep-ratio", default="0.5", help="of the server that short requests go to")
    parser.add_argument("--whole", nargs="*", default=["1x8192", "8x8192", "64x1024"], help="BATCHxTOKENS")
    add_profile_option(parser)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="one server at a time, for cases that fill the card")
    add_options(parser, "idle")
    add_log_option(parser)
    given = parser.parse_args()
    measured = parts(given)
    with Run(given, steps=given.steps) as run, tempfile.TemporaryDirectory() as scratch:
        model = shapes.write(Path(scratch) / "llama-8b")
        for part in measured:
            for group in groups(part.servers(model, given.profile, run), given.alone):
                run.does(f"{part.name}: start of {', '.join(group)}")
                with up(group):
                    _cases(part, group, given, run)
    print("saved", run.save())


def parts(given: argparse.Namespace) -> list[Part]:
    """Those with cases."""
    made: list[Part] = []
    for name, policy, cases in (("short", given.short_keep_ratio, given.short), ("whole", "1", given.whole)):
        if not cases:
            continue
        pairs = [tuple(map(int, case.split("x"))) for case in cases]
        own = [Size(batch, tokens, tokens + given.steps + 1) for batch, tokens in pairs]
        flags = {"hetero_dense_below": max(DENSE_BELOW, *(size.length for size in own))} if name == "short" else {}
        made.append(Part(name, policy, layout_of(policy, given.profile), own, flags))
    return made


def measure(servers: dict[str, Server], size: Size, steps: int, rounds: int) -> Iterator[dict[str, Any]]:
    """A row per server, of `rounds` batches after one that prefills and compiles; `step_seconds`: the median round's.

    RuntimeError when a request was compressed.
    """
    rng = random.Random(size.tokens * 1000 + size.batch)
    prompts = [random_prompt(rng, size.tokens) for _ in range(size.batch)]
    before = {policy: _compressed(policy, server) for policy, server in servers.items()}

    def batch(server: Server) -> list[Stream]:
        return stream(server, prompts, steps, every(size.batch))

    turns(servers, 1, batch)  # while it prefills, the first requests may end before the last begin
    waits = turns(servers, rounds, lambda server: gaps(batch(server)))
    for policy, server in servers.items():
        if compressed := _compressed(policy, server) - before[policy]:
            raise RuntimeError(f"{compressed} requests of {size} were compressed, so that the policy was not idle.")
        server.flush()
        told = spread(waits[policy])
        yield {
            "policy": policy,
            "batch": size.batch,
            "tokens": size.tokens,
            **told,
            "step_seconds": statistics.median(told["step_seconds_all"]),
        }


def every(batch: int) -> int:
    """Tokens per message: as many as leave few messages per step."""
    return max(1, batch // AT_ONCE)


def beside(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, float]:
    """`ratio` and `ratio_p50`: the dense row's step to the step here; empty for dense rows, or without one before."""
    dense = [r for r in rows if r["policy"] == "full" and all(r[n] == row[n] for n in ("part", "batch", "tokens"))]
    if row["policy"] == "full" or not dense:
        return {}
    return {f"ratio{which}": dense[0][f"step_seconds{which}"] / row[f"step_seconds{which}"] for which in ("", "_p50")}


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    case = f"{row['part']:<6} {row['policy']:<6}{row['batch']:>3} x {row['tokens']:>5}"
    text = f"{case}: step {1e3 * row['step_seconds']:7.3f} ms, P50 {1e3 * row['step_seconds_p50']:7.3f} ms"
    return text + (f"  {row['ratio']:.3f}x, P50 {row['ratio_p50']:.3f}x" if "ratio" in row else "")


def _cases(part: Part, servers: dict[str, Server], given: argparse.Namespace, run: Run) -> None:
    held = {policy: server.get("/server_info")["max_total_num_tokens"] for policy, server in servers.items()}
    for size in part.sizes:
        small = [policy for policy, slots in held.items() if slots < part.slots(policy, [size])]
        if small:
            print(f"{size} is left out: the card leaves {small[0]} {held[small[0]]} token slots", flush=True)
            continue
        run.does(f"{part.name}: {size} on {', '.join(servers)}")
        for row in measure(servers, size, given.steps, given.rounds):
            row = {"part": part.name, **row}
            print(line(run.keep(row | beside(row, run.rows))), flush=True)


def _compressed(policy: str, server: Server) -> int:
    return server.stats()["compressed_requests"] if policy != "full" else 0


if __name__ == "__main__":
    main()
