"""Bandwidth between host and device on a GPU, without a server: prefixes and write-back.

Everything in one run over a host store of the Llama-3.1-8B shape, as a percent of a plain pinned copy the same way.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import copies, shapes
from benchmarks.copies import Rate
from benchmarks.run import Run, add_options
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.errors import HeteroError


def main() -> None:
    """A table, and JSON in results/transfer.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("--host-gb", type=float, default=16, help="size of the host store at most")
    parser.add_argument("--tokens", type=int, default=131072, help="of the prefix")
    parser.add_argument("--heads", type=int, default=6, help="compressed heads of each layer, of 8")
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of a prefill chunk that is written back")
    parser.add_argument("--plain-mb", type=int, default=1024, help="size of the plain copies")
    add_options(parser, "transfer")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.transfer measures copies between a GPU and its host: PyTorch finds no GPU here.")
    options = {name: value for name, value in vars(given).items() if name not in ("name", "limit")}
    with Run(given, options=options) as run:
        try:
            run.does("copies")
            for row in measure(torch.device("cuda", torch.cuda.current_device()), given):
                run.keep(row)
        except HeteroError as error:
            raise SystemExit(str(error)) from None
    print("saved", run.save())


def layers_within(host_bytes: float, tokens: int, heads: int) -> int:
    """Layers of a store of `tokens` rows that fit, at most the model's; at least one."""
    layer = tokens * heads * 2 * 2 * shapes.LLAMA_8B["head_dim"]
    return max(1, min(shapes.LLAMA_8B["num_hidden_layers"], int(host_bytes // layer)))


def measure(device: torch.device, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rates, each printed and given as it is known."""
    torch.manual_seed(0)
    pin, dim = device.type == "cuda", shapes.LLAMA_8B["head_dim"]
    heads = [given.heads] * layers_within(1e9 * given.host_gb, given.tokens, given.heads)
    up, down = copies.plain(device, given.plain_mb << 20)
    yield from (_row(up, up), _row(down, down))
    host = HostStore(given.tokens, heads, dim, dim, torch.bfloat16, pin)
    print(f"host store: {given.tokens} tokens, {len(heads)} layers of {given.heads} heads, {host.nbytes / 1e9:.1f} GB")
    for what, slots in copies.patterns(given.tokens).items():
        yield _row(copies.prefix(host, device, slots, what), up)
    for what, slots in copies.patterns(given.tokens).items():
        chunk = slots[: given.chunk]
        yield _row(copies.write_back(host, device, chunk, f"{len(chunk)} tokens, {what}"), down)
    host.close()


def _row(rate: Rate, plain: Rate) -> dict[str, Any]:
    percent = 100 * rate.gb_per_s / plain.gb_per_s
    print(line(rate, percent), flush=True)
    return {
        "what": rate.what,
        "bytes": rate.nbytes,
        "seconds": rate.seconds,
        "gb_per_s": rate.gb_per_s,
        "percent_of_plain": percent,
    }


def line(rate: Rate, percent: float) -> str:
    """One row of the table."""
    return f"{rate.what:<52}{1e3 * rate.seconds:10.2f} ms{rate.gb_per_s:8.1f} GB/s{percent:6.0f}%"


if __name__ == "__main__":
    main()
