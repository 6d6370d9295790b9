"""Host work per step, from a made-up trace of three steps of which two lie between the first and last graph."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.trace import device_time, per_step, read


def call(name: str, at: float, took: float = 1, cat: str = "cuda_runtime", thread: int = 7) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": at, "dur": took, "pid": 1, "tid": thread}


def step(at: float) -> list[dict[str, Any]]:
    return [
        call("cudaGraphLaunch", at, 10),
        call("cudaLaunchKernel", at + 20, 5),
        call("cuLaunchKernel", at + 21, 2, "cuda_driver"),  # by the runtime call around it
        call("cuLaunchKernelEx", at + 30, 5, "cuda_driver"),
        call("cudaMemcpyAsync", at + 40, 5),
        call("aten::copy_", at + 39, 8, "cpu_op"),
        call("aten::copy_", at + 39, 8, "cpu_op", thread=8),
        call("cudaEventSynchronize", at + 50, 400),
        call("cudaLaunchKernel", at + 60, 1, thread=8),
        call("attention", at + 60, 300, "kernel", thread=99),
        {"ph": "M", "name": "process_name"},
    ]


def test_calls_per_step() -> None:
    told = per_step([call("cudaMalloc", 0, 900), *step(1000), *step(2000), *step(3000), call("cudaFree", 3500)])
    assert told["steps"] == 2 and told["graphs"] == 1
    assert (told["launches"], told["copies"], told["syncs"]) == (3, 1, 1)
    assert (told["torch_ops"], told["elsewhere"]) == (1, 1)
    assert told["wall_ms"] == 1 and told["waiting_ms"] == pytest.approx(0.4)
    assert told["host_ms"] == pytest.approx(0.6) and told["api_ms"] == pytest.approx(0.025)
    assert "cudaMalloc" not in told["calls"] and told["calls"]["cudaMemcpyAsync"] == 1


def test_a_trace_without_graphs_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 1 of cudaGraphLaunch"):
        per_step([call("cudaGraphLaunch", 0), call("cudaLaunchKernel", 5)])


def test_traces_are_read_from_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": step(0)}).encode()))
    assert read(path) == step(0)


def test_device_time_is_summed_by_kernel() -> None:
    events = [{"cat": "kernel", "name": "a", "ts": t, "dur": 2.0} for t in range(4)]
    events.append({"cat": "gpu_memcpy", "name": "b", "ts": 0, "dur": 1.0})
    events.append({"cat": "cpu_op", "name": "a", "ts": 0, "dur": 9.0})
    assert device_time(events, 2) == {"a": [4.0, 2.0], "b": [0.5, 0.5]}
