"""Decode attention on a GPU without a server: time per layer of each kernel, and its share of the copy bandwidth.

Llama-3.1-8B's shape (32 query heads, 8 KV heads of size 128, bf16). Every layer has buffers of its own and all layers
run in one CUDA graph, so that the card's cache serves none of them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from benchmarks import results
from hetero_sglang.cache.device_tables import DeviceTables
from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.config.settings import Settings, resolve
from hetero_sglang.ops import triton as ops
from hetero_sglang.ops.base import DecodeKernel, LayerBuffers
from hetero_sglang.ops.chosen import decode_kernel
from hetero_sglang.ops.step import DecodeStep
from hetero_sglang.ops.triton.work import DecodeShape
from hetero_sglang.policy.heterocache import HeteroCache
from hetero_sglang.profile.files import load_profile
from hetero_sglang.profile.head_profile import HeadProfile, LayerRoles
from hetero_sglang.profile.roles import Role

HEADS, GROUP, DIM, DTYPE, DEVICE = 8, 4, 128, torch.bfloat16, "cuda"
STORED = {"bfloat16": torch.bfloat16, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
UNEVEN = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.0)  # weights of compressed heads, in turn
LAYERS = 8  # where no profile says
LISTS = ((1, 32768), (2, 32768), (8, 32768))  # cases of compressed heads alone: 64, 128 and 512 Ki rows per layer
COPIED = 4 << 30  # bytes read, and as many written


@dataclass(frozen=True)
class Case:
    name: str
    settings: Settings
    batch: int
    tokens: int


def profile_of(resident: int, layers: int = LAYERS) -> HeadProfile:
    """Layers of `resident` heads, the others uneven and nobody's satellites."""
    roles = tuple(Role.VOLATILE if h < resident else Role.ANCHOR for h in range(HEADS))
    chosen = UNEVEN[: HEADS - resident]
    mean = sum(chosen) / len(chosen)
    layer = LayerRoles(roles, (0.0,) * resident + tuple(w / mean for w in chosen), (-1,) * HEADS)
    return HeadProfile(layers, HEADS, HEADS * GROUP, DIM, (layer,) * layers)


def settings_of(profile: HeadProfile, keep_ratio: float) -> Settings:
    return resolve(
        profile,
        policy=HeteroCache(),
        keep_ratio=keep_ratio,
        window=64,
        sink=4,
        dense_below=None,
        drift_threshold=0,
        monitor_interval=4,
    )


class Setup:
    """A case's stores and lists on the card, with random rows everywhere."""

    def __init__(self, case: Case, stored: torch.dtype) -> None:
        """`stored`: of rows."""
        self.row = 2 * DIM * stored.itemsize  # bytes of a token's K and V in one head
        self.settings, self.batch, self.tokens = case.settings, case.batch, case.tokens
        layout, rule = case.settings.layout, case.settings.rule
        rows = case.batch * case.tokens
        grant = rule.grant(case.tokens - 1, 1)
        pages = case.batch * int(rule.pages(rule.rows(grant)).sum())
        pool = HotPool(pages, rule.page_size, DIM, DIM, stored, DEVICE)
        for store in (pool.k, pool.v):
            store.copy_(torch.randn(store.shape, dtype=DTYPE, device=DEVICE))
        self.buffers = []
        for spec in layout.layers:
            role, host = torch.empty(HEADS, dtype=torch.int32), torch.empty(1, len(spec.compressed), DIM)
            role[spec.resident_index] = torch.arange(len(spec.resident), dtype=torch.int32)
            role[spec.compressed_index] = -1 - torch.arange(len(spec.compressed), dtype=torch.int32)
            shape = rows, len(spec.resident), DIM
            k, v = (torch.randn(shape, dtype=DTYPE, device=DEVICE).to(stored) for _ in "kv")
            self.buffers.append(LayerBuffers(role.to(DEVICE), k, v, host, pool.k, pool.v, pool.position, pool.score,
                                             spec.first))  # fmt: skip
        self.tables = DeviceTables(case.batch, layout.num_compressed, pages, DEVICE)
        sets = [WorkingSet(pool, rule, grant) for _ in range(case.batch)]
        for slot, ws in enumerate(sets):
            ws.slot = slot
        self.tables.put(sets)
        self.req_to_token = torch.arange(rows, dtype=torch.int32, device=DEVICE).view(case.batch, case.tokens)
        self.q = torch.randn(len(layout.layers), case.batch, HEADS * GROUP, DIM, device=DEVICE).to(DTYPE)
        caps = rule.rows(grant).caps.tolist()
        self.kept = case.batch * sum(caps)  # rows of compressed heads, all layers
        self.rows = self.kept + rows * layout.num_resident

    @property
    def layers(self) -> int:
        return len(self.buffers)

    def step(self, kernel: Callable[[DecodeStep], DecodeKernel]) -> DecodeStep:
        step = DecodeStep(ops, self.settings, self.tables, self.batch, self.tokens, GROUP, DIM, DTYPE, kernel)
        lengths, none = [self.tokens] * self.batch, [0] * self.batch
        step.fill([lengths, list(range(self.batch)), *[none] * 4], self.batch, self.req_to_token)
        return step

    def attend(self, step: DecodeStep) -> Callable[[], list[torch.Tensor]]:
        """Every layer's attention, for a step that is planned."""
        now = step.plan(self.batch)
        return lambda: [step.kernel.attend(i, self.q[i], b, now, DIM**-0.5) for i, b in enumerate(self.buffers)]


def timed(run: Callable[[], Any], rounds: int = 15) -> float:
    """Seconds of a call, median; a round takes 5 ms at least, so that the clock does not count."""
    run()
    torch.cuda.synchronize()
    many = 1
    times: list[float] = []
    while len(times) < rounds:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(many):
            run()
        end.record()
        end.synchronize()
        seconds = begin.elapsed_time(end) / 1e3
        if seconds < 5e-3 and many < 1000:
            many *= 2
            continue
        times.append(seconds / many)
    return statistics.median(times)


def captured(run: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """`run` as a graph, and what it returned in capture: replays write there."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph, out


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy on the device."""
    source, target = (torch.zeros(COPIED, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    return 2 * COPIED / timed(lambda: target.copy_(source))


def measure(case: Case, stored: str, kernels: list[str], bandwidth: float) -> list[dict[str, Any]]:
    """One row per kernel."""
    setup, rows, outputs = Setup(case, STORED[stored]), [], []
    for name in kernels:
        step = setup.step(decode_kernel(name, ops, setup.buffers))
        graph, out = captured(setup.attend(step))
        seconds = timed(graph.replay) / setup.layers
        planning, _ = captured(partial(step.plan, setup.batch))
        outputs.append(torch.stack(out).float())
        size = setup.rows * setup.row / setup.layers
        rows.append(
            {
                "case": case.name, "batch": case.batch, "tokens": case.tokens, "kernel": name,
                "stored": stored,
                "kept": setup.rows / (case.batch * case.tokens * HEADS * setup.layers),
                "compressed_rows": setup.kept / setup.layers, "layers": setup.layers, "layer_bytes": size,
                "layer_seconds": seconds, "plan_seconds": timed(planning.replay),
                "bytes_per_second": size / seconds, "share_of_copy": size / seconds / bandwidth,
                "difference": float((outputs[-1] - outputs[0]).norm() / outputs[0].norm()),
            }
        )  # fmt: skip
        _show(rows[-1])
        del step, graph, out, planning
    return rows


def sweep(case: Case, stored: str, bandwidth: float) -> list[dict[str, Any]]:
    """The Triton kernel's time per layer with other launch parameters, fastest first."""
    setup, rows = Setup(case, STORED[stored]), []
    blocks = (32, 64) if stored == "bfloat16" else (32, 64, 128)
    for block, warps, stages, items in itertools.product(blocks, (4, 8), (2, 3, 4), (2, 4, 6, 8)):
        shape = DecodeShape(block, warps, stages, items)
        step = setup.step(partial(ops.AttendStep, shape=shape))
        try:
            graph, _ = captured(setup.attend(step))
        except OutOfResources:  # more shared memory than a processor has
            continue
        seconds = timed(graph.replay, rounds=5) / setup.layers
        share = setup.rows * setup.row / setup.layers / seconds / bandwidth
        rows.append(
            {"case": case.name, "stored": stored, **asdict(shape), "layer_seconds": seconds, "share_of_copy": share}
        )
        del step, graph
    rows.sort(key=lambda row: row["layer_seconds"])
    default = asdict(DecodeShape())
    for row in [*rows[:3], *(r for r in rows if default.items() <= r.items())]:
        named = ", ".join(f"{name} {row[name]}" for name in default)
        print(f"  {1e6 * row['layer_seconds']:7.1f} us  {100 * row['share_of_copy']:5.1f}%  {named}", flush=True)
    return rows


def _show(row: dict[str, Any]) -> None:
    print(
        f"{row['case']:<28} {row['kernel']:<10} {row['stored']:<9} {100 * row['kept']:5.1f}% kept  "
        f"{row['layer_bytes'] / 1e6:7.1f} MB  "
        f"{1e6 * row['layer_seconds']:7.1f} us a layer  {row['bytes_per_second'] / 1e12:5.2f} TB/s  "
        f"{100 * row['share_of_copy']:5.1f}% of copy  plan {1e6 * row['plan_seconds']:5.1f} us a step  "
        f"difference {row['difference']:.1e}",
        flush=True,
    )


def main() -> None:
    """A table, and JSON in results/kernels.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--profile", help="head profile of the model; default: 2 resident and 6 uneven heads per layer")
    parser.add_argument("--keep-ratio", type=float, help="default: 0.25 with a profile, 0.325 without")
    parser.add_argument("--cases", nargs="+", default=["1x131072", "1x229376", "8x32768"], help="BATCHxTOKENS")
    parser.add_argument("--kernels", nargs="+", default=["triton", "flashinfer"], choices=["triton", "flashinfer"])
    parser.add_argument("--stored", default="bfloat16", choices=STORED, help="what rows are kept as (bfloat16)")
    parser.add_argument("--sweep", action="store_true", help="also try other launch parameters of the Triton kernel")
    parser.add_argument("--name", default="kernels")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: benchmarks.kernels measures CUDA kernels and finds no GPU here.")
    profile = load_profile(given.profile) if given.profile else profile_of(resident=2)
    ratio = given.keep_ratio or (0.25 if given.profile else 0.325)
    if (profile.num_kv_heads, profile.num_query_heads or HEADS * GROUP) != (HEADS, HEADS * GROUP):
        sys.exit(f"error: {given.profile} is not of a model with {HEADS * GROUP} query and {HEADS} KV heads per layer.")
    lists, whole = settings_of(profile_of(resident=0), 0.25), settings_of(profile, ratio)
    cases = [Case(f"compressed heads {b}x{n}", lists, b, n) for b, n in LISTS]
    for batch, tokens in (map(int, case.split("x")) for case in given.cases):
        cases.append(Case(f"whole layers {batch}x{tokens}", whole, batch, tokens))
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    torch.cuda.empty_cache()
    print(f"copy on the device: {bandwidth / 1e12:.2f} TB/s, read and written", flush=True)
    result: dict[str, Any] = {"copy_bytes_per_second": bandwidth, "keep_ratio": ratio, "profile": bool(given.profile)}
    result["rows"] = []
    for case in cases:
        result["rows"] += measure(case, given.stored, given.kernels, bandwidth)
        torch.cuda.empty_cache()
    if given.sweep:
        result["sweep"] = []
        for case in cases:
            print(case.name, flush=True)
            result["sweep"] += sweep(case, given.stored, bandwidth)
            torch.cuda.empty_cache()
    print("saved", results.save(given.name, result))


if __name__ == "__main__":
    main()
