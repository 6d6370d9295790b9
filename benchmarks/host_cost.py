"""Host work per decode step on a GPU, from SGLang's profiler: nothing may cost more with every layer.

Random weights of the Llama-3.1-8B shape with all of its layers and with half of them: launches, copies and waits of
the scheduler's thread per step must be the same for both. Looks and refills of satellites are in the step's graph and
must add none: `--fetch-rates 0 0.05`. Anchors add some for each layer that has any, once in 32 steps of a request.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import shapes
from benchmarks.dummy import (
    add_policies_option,
    chosen_policies,
    dummy_server,
    forced_rate,
    profile_path,
    random_prompt,
)
from benchmarks.launch import Server
from benchmarks.run import Run, add_log_option, add_options
from benchmarks.streams import Stream, run_together
from benchmarks.trace import per_step, read
from hetero_sglang.profile.files import load_profile, save_profile
from hetero_sglang.profile.head_profile import scale_weights

WARM = 20  # tokens of each request before the profiler starts
COLUMNS = (
    "wall_ms", "host_ms", "waiting_ms", "api_ms", "launches", "graphs", "copies", "syncs", "torch_ops", "refilled",
)  # fmt: skip


def main() -> None:
    """A table, and JSON in results/host_cost.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_cost", description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[32, 16])
    parser.add_argument(
        "--fetch-rates", type=float, nargs="+", metavar="RATE", default=[0.0],
        help="shares of the satellites that each look refills (0)",
    )  # fmt: skip
    add_policies_option(parser)
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=100)
    add_options(parser, "host_cost")
    add_log_option(parser)
    given = parser.parse_args()
    policies = chosen_policies(given)
    with Run(given, requests=given.requests, tokens=given.tokens) as run:
        for policy, rate, layers in itertools.product(policies, given.fetch_rates, given.layers):
            run.does(f"{policy}: {layers} layers, fetch rate {rate:g}")
            with tempfile.TemporaryDirectory() as scratch:
                row = _measured(policy, layers, rate, given, run.log(policy, layers, rate), Path(scratch))
            run.keep({"policy": policy, "layers": layers, "fetch_rate": rate, **row})
            print(table(run.rows[-1:])[-1], flush=True)
    print("\n".join(table(run.rows)))
    print("saved", run.save())


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Means per step; below the rows of a policy and fetch rate, what one more layer adds."""
    lines = [f"{'policy':<8}{'rate':>6}{'layers':>10}" + "".join(f"{name:>11}" for name in COLUMNS)]
    for kind in dict.fromkeys((row["policy"], row["fetch_rate"]) for row in rows):
        own = sorted((r for r in rows if (r["policy"], r["fetch_rate"]) == kind), key=lambda row: row["layers"])
        lines += [_line(kind, str(row["layers"]), row) for row in own]
        if own[-1]["layers"] > own[0]["layers"]:
            lines.append(_line(kind, "each more", per_layer(own[0], own[-1])))
    return lines


def per_layer(few: dict[str, Any], many: dict[str, Any]) -> dict[str, float]:
    """What one layer adds to a step."""
    return {name: (many[name] - few[name]) / (many["layers"] - few["layers"]) for name in COLUMNS}


def _line(kind: tuple[str, float], layers: str, row: dict[str, Any]) -> str:
    policy, rate = kind
    return f"{policy:<8}{rate:>6g}{layers:>10}" + "".join(f"{row[name]:>11.3f}" for name in COLUMNS)


def _measured(
    policy: str, layers: int, rate: float, given: argparse.Namespace, log: Path | None, scratch: Path
) -> dict[str, Any]:
    model = shapes.write(scratch / "model", {**shapes.LLAMA_8B, "num_hidden_layers": layers})
    profile = cut_profile(given.profile, layers, scratch / "profile.json") if policy != "full" else None
    room = 2 * given.requests * (given.tokens + WARM + 3 * given.steps)
    env = forced_rate(rate)
    with dummy_server(model, policy, profile, log, env, max_total_tokens=room) as server:
        row = per_step(read(_profiled(server, given, scratch / "trace")))
        refilled = server.stats()["drift_triggers"] if policy != "full" else 0
        return {**row, "refilled": refilled / (WARM + 3 * given.steps)}


def cut_profile(path: str | None, layers: int, out: Path) -> str:
    """The head profile of the model's first `layers` layers, without a key index."""
    whole = load_profile(profile_path(path))
    kept = scale_weights(whole.layers[:layers])
    save_profile(replace(whole, num_layers=layers, layers=kept, measurements=None, index=None), out)
    return str(out)


def _profiled(server: Server, given: argparse.Namespace, folder: Path) -> Path:
    """The trace of --steps decode steps; its file is whole once the requests have ended, as one thread does both."""
    rng = random.Random(0)
    server.generate(random_prompt(rng, given.tokens), 8)  # kernels are compiled
    # After the profiled steps there are as many again: the profiler starts when its request gets through, not at once.
    streams = [
        Stream(server.url, random_prompt(rng, given.tokens), WARM + 3 * given.steps) for _ in range(given.requests)
    ]
    runner = threading.Thread(target=run_together, args=(streams,), daemon=True)
    runner.start()
    while runner.is_alive() and any(len(stream.times) < WARM for stream in streams):
        time.sleep(0.002)
    options = {"output_dir": str(folder), "num_steps": given.steps, "activities": ["CPU", "GPU"]}
    server.post("/start_profile", {**options, "with_stack": False, "record_shapes": False})
    runner.join()
    server.get("/health")
    found = list(folder.glob("*.trace.json.gz"))
    if len(found) != 1:
        raise RuntimeError(f"the server left {len(found)} traces instead of one:\n{server.tail()}")
    return found[0]


if __name__ == "__main__":
    main()
