"""Heads with a key index on a GPU, without a server: what brings their rows from the host, and what chooses them.

GB/s of `swap_in` and `bring` over a host store of the Llama-3.1-8B shape, beside a plain copy of as many bytes; then
what `probe`, `choose` and `swap_in` add to a layer (benchmarks/lazy_layers.py).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import lazy_layers
from benchmarks.copies import once, seconds
from benchmarks.counts import counts
from benchmarks.kernels import captured
from benchmarks.run import Run, add_options
from hetero_sglang.cache.host_layout import BLOCK
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.cache.shared_memory import SharedMemory
from hetero_sglang.ops import reference
from hetero_sglang.ops.base import StepTables
from hetero_sglang.ops.triton.swap_in import bring, swap_in
from hetero_sglang.ops.triton.workspace import Workspace

HEADS, DIM, DTYPE = 8, 128, torch.bfloat16
ROW = 2 * DIM * DTYPE.itemsize  # bytes of a token's K and V in one head
LAYERS = 32  # launches of one graph, each for other rows
PAGE = 16


def main() -> None:
    """A table, and JSON in results/swap_in.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swap_in", description=__doc__)
    parser.add_argument("--gb", type=float, default=24, help="size of the host store")
    parser.add_argument("--programs", type=int, nargs="+", default=[64, 256, 1024], help="of a warp, that bring runs")
    parser.add_argument(
        "--prefix-programs", type=int, nargs="+", default=[16, 32, 64], help="of 8, that bring a prefix"
    )
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 4, 8], help="tokens that come together")
    parser.add_argument("--tokens", type=int, default=32768, help="of a request, and of a prefix")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8], help="at once")
    parser.add_argument("--come", type=int, default=120, help="rows of a layer that come for each request")
    parser.add_argument(
        "--cases", nargs="+", default=["1x131072", "8x32768", "32x8192"], help="BATCHxTOKENS, per layer"
    )
    add_options(parser, "swap_in")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.swap_in measures kernels of a GPU and finds no GPU here.")
    options = {name: value for name, value in vars(given).items() if name not in ("name", "limit")}
    with Run(given, options=options) as run:
        run.does("a host store")
        device = torch.device("cuda", torch.cuda.current_device())
        blocks = int(1e9 * given.gb) // (BLOCK * HEADS * ROW)
        memory = SharedMemory("host-rows", blocks * BLOCK * HEADS * ROW, pin=True)
        host = memory.tensor(DTYPE, (blocks, HEADS, BLOCK, 2 * DIM))
        fill(host)
        run.does("rows of single heads, and prefixes")
        for row in measure(device, host, given):
            run.keep(row)
        run.does("layers")
        for case in given.cases:
            batch, tokens = map(int, case.split("x"))
            for length in given.runs:
                for row in lazy_layers.measure(device, host, batch, tokens, length):
                    run.keep(row)
    print("saved", run.save())


def fill(host: torch.Tensor) -> None:
    """Random rows everywhere, and quickly: the same 64 MiB again and again, each time from elsewhere."""
    flat = host.view(-1)
    values = torch.randn(min(flat.numel(), 32 << 20)).to(host.dtype)
    for number, part in enumerate(flat.split(values.numel())):
        part.copy_(values.roll(number)[: part.numel()])


def scattered(host: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """Token slots [count] in runs of `length` that lie anywhere, each at a multiple of `length`."""
    firsts = torch.randint(host.shape[0] * BLOCK // length, (-(-count // length), 1)) * length
    return (firsts + torch.arange(length)).flatten()[:count]


def measure(device: torch.device, host: torch.Tensor, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rates of everything that reads the store, each printed and given as it is known."""
    for length in given.runs:
        for requests in given.requests:
            for programs in given.programs:
                yield _swaps(device, host, given.tokens, requests, length, given.come, programs)
            yield _plain(device, LAYERS * requests * given.come * ROW, f"plain copy of {LAYERS} layers' rows", length)
    for what, length in (("blocks", BLOCK), ("scattered", 1)):
        for programs in given.prefix_programs:
            yield _prefix(device, host, given.tokens, what, length, programs)
    yield _plain(device, given.tokens * HEADS * ROW, "plain copy of the prefix", None)


def _swaps(
    device: torch.device, host: torch.Tensor, tokens: int, requests: int, length: int, come: int, programs: int
) -> dict[str, Any]:  # fmt: skip
    """`swap_in` for LAYERS layers in turn, of rows that were not visited before."""
    units, runs = requests * HEADS, max(1, come // HEADS // length)
    rows = runs * length
    pages = units * -(-rows // PAGE)
    hot = HotPool(pages, PAGE, DIM, DIM, DTYPE, device)
    ints = dict(dtype=torch.int32, device=device)
    lists = torch.arange(pages, **ints)
    opening = torch.arange(0, pages, pages // units, **ints).view(requests, HEADS)
    step = StepTables(
        torch.full((requests,), tokens, **ints), torch.zeros_like(opening), opening, lists, lists[:1],
        **counts(requests, HEADS, device),
    )  # fmt: skip
    nothing = torch.empty(0, device=device)
    every = torch.arange(HEADS, **ints)
    layer = LayerIndex(every, every, nothing, nothing, nothing, nothing, nothing, ((16, 1),), 0, run=length)
    slots = scattered(host, requests * tokens, BLOCK).to(device, torch.int32)
    starts = torch.arange(requests, **ints) * tokens
    layers = [Workspace(requests, HEADS, 1, 1, 1, length, runs, device) for _ in range(LAYERS)]
    places, count = torch.arange(runs, **ints).expand(units, runs), torch.full((units,), runs, **ints)

    def choose() -> None:
        for work in layers:
            work.give(torch.randint(tokens // length, (units, runs), **ints), places, places, count, HEADS)

    def read() -> None:
        for work in layers:
            swap_in(layer, host, slots, starts, step, hot, 0, work, programs)

    taken = _fresh(device, choose, read)
    position = hot.position.cpu()[lists.view(units, -1).cpu()].view(units, -1)[:, :rows].long()
    slot = slots.cpu().view(requests, -1).repeat_interleave(HEADS, 0).gather(1, position)  # [units, rows]
    wanted = host[slot // BLOCK, torch.arange(units)[:, None] % HEADS, slot % BLOCK]
    right = torch.equal(hot.k[:pages].cpu().view(units, -1, DIM)[:, :rows], wanted[..., :DIM])
    result = _rate(f"runs of {length}, {units * runs} places a layer", LAYERS * units * rows * ROW, taken, programs)
    return {**result, "places_per_second": LAYERS * units * runs / taken, "right": right}


def _prefix(
    device: torch.device, host: torch.Tensor, tokens: int, what: str, length: int, programs: int
) -> dict[str, Any]:  # fmt: skip
    out = torch.empty(tokens, HEADS, 2 * DIM, dtype=DTYPE, device=device)
    slots = torch.empty(tokens, dtype=torch.int64, device=device)

    def choose() -> None:
        slots.copy_(scattered(host, tokens, length))

    taken = _fresh(device, choose, lambda: bring(host, slots, out, programs))
    some = slots[:999].cpu()
    wanted = torch.empty(len(some), *out.shape[1:], dtype=DTYPE)
    reference.bring(host, some, wanted)
    right = torch.equal(out[:999].cpu(), wanted)
    return {**_rate(f"prefix, {what}", out.numel() * DTYPE.itemsize, taken, programs), "right": right}


def _fresh(device: torch.device, choose: Callable[[], None], read: Callable[[], None]) -> float:
    """Median seconds of `read`, replayed, after each time `choose` has said what is to be read."""
    choose()
    replay = captured(read)[0].replay if device.type == "cuda" else read
    times = []
    for _ in range(lazy_layers.ROUNDS):
        choose()
        times.append(once(device, replay))
    return statistics.median(times)


def _plain(device: torch.device, nbytes: int, what: str, length: int | None) -> dict[str, Any]:
    here = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    return _rate(what, nbytes, seconds(device, lambda: there.copy_(here, non_blocking=True)), None)


def _rate(what: str, nbytes: int, taken: float, programs: int | None) -> dict[str, Any]:
    by = f" ({programs} programs)" if programs else ""
    print(f"{what + by:<56}{1e6 * taken:10.1f} us{nbytes / taken / 1e9:8.1f} GB/s", flush=True)
    return {"what": what, "programs": programs, "bytes": nbytes, "seconds": taken, "gb_per_s": nbytes / taken / 1e9}


if __name__ == "__main__":
    main()
