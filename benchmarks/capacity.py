"""Long requests at once in equal device KV bytes: plain SGLang and heterocache, one server after the other.

Random weights of the Llama-3.1-8B shape and prompts that share nothing. Each prompt is prefilled once; decode batches
of growing size then hit those prefixes, and one request more than fits shows how many the server really runs at once.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import results, shapes
from benchmarks.dummy import dummy_server, random_prompt
from benchmarks.launch import Server
from benchmarks.streams import Stream, peak, run_together, step_seconds
from hetero_sglang.memory.layout import build_layout
from hetero_sglang.memory.sizes import Shape, Sizes, slots_within
from hetero_sglang.profile.files import load_profile
from hetero_sglang.settings import HOT_PAGE


def token_slots(policy: str, profile: str | None, kv_bytes: int) -> tuple[int, int]:
    """Token slots that `kv_bytes` of device memory hold, and the host bytes that they need beside them."""
    if policy == "full":
        return kv_bytes // shapes.kv_bytes_per_token(), 0
    if profile is None:
        raise SystemExit("heterocache needs --profile, the head profile of Llama-3.1-8B.")
    dim = int(shapes.LLAMA_8B["head_dim"])
    shape, layout = Shape(dim, dim, 2), build_layout(load_profile(profile), float(policy))
    slots = slots_within([layout], shape, HOT_PAGE, kv_bytes, None, joint=False)
    return slots, slots * Sizes(shape, layout, HOT_PAGE, slots).host_bytes_per_slot


def batches(most: int) -> list[int]:
    """1, 2, 4 and so on, and `most`."""
    return sorted({1 << n for n in range(most.bit_length()) if 1 << n <= most} | ({most} if most else set()))


def measure(server: Server, tokens: int, steps: int, fits: int) -> dict[str, Any]:
    """Decode rates of growing batches, and how many of `fits` + 1 requests ran at once."""
    rng = random.Random(tokens)
    prompts = [random_prompt(rng, tokens) for _ in range(fits + 1)]
    for prompt in prompts[:fits]:
        server.generate(prompt, 1)
    rates: list[dict[str, float]] = []
    for batch in batches(fits):
        streams = _run(server, prompts[:batch], steps)
        if peak(streams) < batch:
            break
        seconds = step_seconds(streams)
        rates.append({"batch": batch, "step_seconds": seconds, "tokens_per_second": batch / seconds})
        print(f"  {batch:>3} at once: step {1e3 * seconds:7.2f} ms, {batch / seconds:8.1f} tokens/s", flush=True)
    concurrent = peak(_run(server, prompts, steps))  # the last one waits, or was not expected to fit
    return {"concurrent": concurrent, "batches": rates, "best": best(rates)}


def best(rates: list[dict[str, float]]) -> dict[str, float]:
    """The batch with the most tokens per second."""
    return max(rates, key=lambda rate: rate["tokens_per_second"])


def main() -> None:
    """A table, and JSON in results/capacity.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--kv-gb", type=float, default=24, help="device KV bytes of every policy")
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--policies", nargs="+", default=["full", "0.25"], help="full, or a keep ratio of heterocache")
    parser.add_argument("--profile", help="head profile of the model (required for heterocache)")
    parser.add_argument("--name", default="capacity")
    parser.add_argument("--log-dir", type=Path, default=None)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        model = shapes.write(Path(scratch) / "llama-8b")
        for policy in given.policies:
            slots, host = token_slots(policy, given.profile, int(given.kv_gb * 1e9))
            fits = slots // (given.tokens + given.steps + 1)
            print(f"{policy}: {slots} token slots, {host / 1e9:.1f} GB of host memory, {fits} requests", flush=True)
            if not fits:
                raise SystemExit(f"--kv-gb {given.kv_gb:g} holds no request of {given.tokens} tokens; raise it.")
            log = given.log_dir / f"{given.name}-{policy}.log" if given.log_dir else None
            with dummy_server(model, policy, given.profile, log, max_total_tokens=slots) as server:
                row = {"policy": policy, "token_slots": slots, "host_bytes": host}
                row |= measure(server, given.tokens, given.steps, fits)
                if policy != "full":
                    told = server.stats()
                    row |= {"device_bytes": told["resident_bytes"] + told["hot_bytes"], "integrity": told["integrity"]}
                rows.append(row)
            saved = {"tokens": given.tokens, "kv_gb": given.kv_gb, "rows": rows}
            path = results.save(given.name, saved)
    print("\n".join(table(rows)))
    print("saved", path)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Every policy's requests at once and best rate, with ratios to the first."""
    lines = [f"{'policy':<8}{'slots':>9}{'at once':>9}{'':>7}{'tokens/s':>10}{'at batch':>9}{'':>7}"]
    first = rows[0]
    for row in rows:
        rate, base = row["best"]["tokens_per_second"], first["best"]["tokens_per_second"]
        held = f"{row['concurrent'] / first['concurrent']:6.2f}x" if first["concurrent"] else ""
        lines.append(
            f"{row['policy']:<8}{row['token_slots']:>9}{row['concurrent']:>9}{held:>7}"
            f"{rate:>10.1f}{row['best']['batch']:>9}{rate / base:>6.2f}x"
        )
    return lines


def _run(server: Server, prompts: list[list[int]], steps: int) -> list[Stream]:
    streams = [Stream(server.url, prompt, steps) for prompt in prompts]
    run_together(streams)
    return streams


if __name__ == "__main__":
    main()
