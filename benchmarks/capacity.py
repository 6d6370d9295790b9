"""Long requests at once in equal device KV bytes: plain SGLang and heterocache, one server after the other.

Random weights of the Llama-3.1-8B shape and prompts that share nothing. Each prompt is prefilled once; decode batches
of growing size then hit those prefixes, and one request more than fits shows how many the server really runs at once.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import shapes
from benchmarks.cases import stream
from benchmarks.dummy import (
    add_index_options,
    add_policies_option,
    changed_rows,
    chosen_policies,
    dummy_server,
    forced_rate,
    index_profile,
    profile_path,
    random_prompt,
    rows_at_once,
)
from benchmarks.launch import Server
from benchmarks.run import Run, add_log_option, add_options
from benchmarks.streams import gaps, peak, step_seconds
from hetero_sglang.cache.sizes import Shape, Sizes, slots_within
from hetero_sglang.config.layout import build_layout
from hetero_sglang.config.settings import HOT_PAGE, bytes_of_index, profile_share
from hetero_sglang.profile.ablation import alike
from hetero_sglang.profile.files import load_profile


def token_slots(
    policy: str, profile: str | None, kv_bytes: int, index: bool, config: dict[str, Any] = shapes.LLAMA_8B
) -> tuple[int, int]:
    """Token slots that `kv_bytes` of device memory hold, and the host bytes that they need beside them."""
    if policy == "full":
        return kv_bytes // shapes.kv_bytes_per_token(config), 0
    dim = int(str(config["head_dim"]))
    loaded = load_profile(profile_path(profile))
    if index:  # heads that look by it are alike, whatever their roles
        heads = loaded.num_kv_heads, config["num_attention_heads"]
        loaded = alike(config["num_hidden_layers"], *heads, dim, loaded.index)
    shape = Shape(dim, dim, 2)
    layout = build_layout(loaded, float(policy) - (profile_share(loaded) if index else 0))
    index_bytes = [bytes_of_index(loaded) if index else 0]
    slots = slots_within([layout], shape, HOT_PAGE, kv_bytes, None, joint=False, index_bytes=index_bytes)
    return slots, slots * Sizes(shape, layout, HOT_PAGE, slots).host_bytes_per_slot


def batches(most: int) -> list[int]:
    """1, 2, 4 and so on, and `most`."""
    return sorted({1 << n for n in range(most.bit_length()) if 1 << n <= most} | ({most} if most else set()))


def measure(
    server: Server, tokens: int, steps: int, fits: int, told: Callable[[dict[str, Any]], object], warm: float = 0.0
) -> None:
    """Decode rates of growing batches, and how many of `fits` + 1 requests ran at once; each goes to `told`.

    `warm`: the temperature; see benchmarks/cases.py.
    """
    rng = random.Random(tokens)
    prompts = [random_prompt(rng, tokens) for _ in range(fits + 1)]
    for prompt in prompts[:fits]:
        server.generate(prompt, 1)
    rates: list[dict[str, float]] = []
    for batch in batches(fits):
        streams = stream(server, prompts[:batch], steps, temperature=warm)
        if peak(streams) < batch:
            break
        seconds, typical = step_seconds(streams), median(gaps(streams))
        rate = {"batch": batch, "step_seconds": seconds, "step_seconds_p50": typical}
        rates.append({**rate, "tokens_per_second": batch / seconds})
        told({"batches": rates, "best": best(rates)})
        times = f"step {1e3 * seconds:7.2f} ms, P50 {1e3 * typical:7.2f}"
        print(f"  {batch:>3} at once: {times}, {batch / seconds:8.1f} tokens/s", flush=True)
    # The last one waits, or was not expected to fit.
    told({"concurrent": peak(stream(server, prompts, steps, temperature=warm))})


def best(rates: list[dict[str, float]]) -> dict[str, float]:
    """The batch with the most tokens per second."""
    return max(rates, key=lambda rate: rate["tokens_per_second"])


def main() -> None:
    """A table, and JSON in results/capacity.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--kv-gb", type=float, default=24, help="device KV bytes of every policy")
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument(
        "--fetch-rate", type=float, default=0.01, help="share of the satellites that each look refills: random weights "
        "would drift all the time",
    )  # fmt: skip
    parser.add_argument(
        "--changed-rows", type=int,
        help="heads have key indexes of random directions, and so many rows come to a head and step on the mean",
    )  # fmt: skip
    add_index_options(parser)
    add_policies_option(parser)
    add_options(parser, "capacity")
    add_log_option(parser)
    given = parser.parse_args()
    told = {"tokens": given.tokens, "kv_gb": given.kv_gb, "fetch_rate": given.fetch_rate}
    if given.changed_rows is not None:
        told |= {
            "fetch_rate": None,
            "changed_rows": given.changed_rows,
            "index_turns": given.index_turns,
            "index_runs": given.index_runs,
            "index_weights": given.index_weights,
        }
    policies = chosen_policies(given) if given.changed_rows is None else given.policies
    with Run(given, **told) as run, tempfile.TemporaryDirectory() as scratch:
        model = shapes.write(Path(scratch) / "llama-8b")
        if given.changed_rows is not None:
            given.profile = str(index_profile(Path(scratch), given.index_turns, given.index_runs, given.index_weights))
        for policy in policies:
            _measure(policy, model, given, run)
    print("\n".join(table(run.rows)))
    print("saved", run.save())


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Every policy's requests at once and best rate, with ratios to the first; "-" for what was not measured."""
    lines = [f"{'policy':<8}{'slots':>9}{'at once':>9}{'':>7}{'tokens/s':>10}{'at batch':>9}{'':>7}"]
    for row in rows:
        held, rate = row.get("concurrent"), row.get("best", {}).get("tokens_per_second")
        first_held, first_rate = rows[0].get("concurrent"), rows[0].get("best", {}).get("tokens_per_second")
        lines.append(
            f"{row['policy']:<8}{row['token_slots']:>9}{'-' if held is None else held:>9}{_times(held, first_held):>7}"
            f"{'-' if rate is None else f'{rate:.1f}':>10}{row.get('best', {}).get('batch', '-'):>9}"
            f"{_times(rate, first_rate):>7}"
        )
    return lines


def _times(value: float | None, first: float | None) -> str:
    return f"{value / first:.2f}x" if value and first else ""


def _measure(policy: str, model: Path, given: argparse.Namespace, run: Run) -> None:
    index = policy != "full" and given.changed_rows is not None
    slots, host = token_slots(policy, given.profile, int(given.kv_gb * 1e9), index)
    fits = slots // (given.tokens + given.steps + 1)
    print(f"{policy}: {slots} token slots, {host / 1e9:.1f} GB of host memory, {fits} requests", flush=True)
    if not fits:
        raise SystemExit(f"--kv-gb {given.kv_gb:g} holds no request of {given.tokens} tokens; raise it.")
    row: dict[str, Any] = {"policy": policy, "token_slots": slots, "host_bytes": host}

    def told(more: dict[str, Any]) -> None:
        row.update(more)
        run.save()

    run.does(f"{policy}: the server's start")
    env = changed_rows(rows_at_once(given.profile, given.changed_rows)) if index else forced_rate(given.fetch_rate)
    flags = {"hetero_index": "directions"} if index else {}
    with dummy_server(model, policy, given.profile, run.log(policy), env, max_total_tokens=slots, **flags) as server:
        run.keep(row)
        run.does(f"{policy}: {fits} + 1 requests")
        measure(server, given.tokens, given.steps, fits, told, 1.0 if index else 0.0)
        if policy != "full":
            counts = server.stats()
            device = counts["resident_bytes"] + counts["hot_bytes"] + counts["index_bytes"]
            told({"device_bytes": device, "integrity": counts["integrity"]})


if __name__ == "__main__":
    main()
