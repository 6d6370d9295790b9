"""What the host and the device do per decode step, read from a torch trace of a scheduler."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

GRAPH = "cudaGraphLaunch"  # one per decode step
LAUNCHES = ("cudaLaunch", "cuLaunch", GRAPH)
COPIES = ("cudaMemcpy", "cudaMemset", "cuMemcpy", "cuMemset")
WAITS = {f"{place}Synchronize" for place in ("cudaStream", "cudaEvent", "cudaDevice", "cuStream", "cuEvent", "cuCtx")}
WAITS |= {"cudaMemcpy", "cudaMemcpy2D"}


def read(path: Path) -> list[dict[str, Any]]:
    """The trace's events."""
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


def per_step(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Means per step of the thread that launches the decode graphs, between its first and its last graph.

    wall_ms: a step; waiting_ms: inside calls that wait for the device; host_ms: the rest; api_ms: inside other CUDA
    calls. launches: kernels and graphs; calls: of each CUDA call; torch_ops: operators, nested ones too.
    ValueError when the trace holds fewer than two graphs.
    """
    graphs = sorted((e for e in events if e.get("ph") == "X" and e.get("name") == GRAPH), key=lambda e: e["ts"])
    if len(graphs) < 2:
        raise ValueError(f"the trace holds {len(graphs)} of {GRAPH}: decode ran without CUDA graphs, or not at all")
    thread, begin, end = _thread(graphs[0]), graphs[0]["ts"], graphs[-1]["ts"]
    steps = len(graphs) - 1
    within = [e for e in events if e.get("ph") == "X" and begin <= e["ts"] < end]
    calls = [e for e in within if e.get("cat") in ("cuda_runtime", "cuda_driver")]
    own = _outermost([e for e in calls if _thread(e) == thread])
    counts = Counter(e["name"] for e in own)
    waiting = sum(e["dur"] for e in own if e["name"] in WAITS)
    wall, api = (end - begin) / steps, sum(e["dur"] for e in own) - waiting
    return {
        "steps": steps,
        "wall_ms": wall / 1e3,
        "host_ms": (wall - waiting / steps) / 1e3,
        "waiting_ms": waiting / steps / 1e3,
        "api_ms": api / steps / 1e3,
        "launches": sum(n for name, n in counts.items() if name.startswith(LAUNCHES)) / steps,
        "graphs": counts[GRAPH] / steps,
        "copies": sum(n for name, n in counts.items() if name.startswith(COPIES)) / steps,
        "syncs": sum(counts[name] for name in WAITS) / steps,
        "torch_ops": sum(e.get("cat") == "cpu_op" and _thread(e) == thread for e in within) / steps,
        "elsewhere": sum(_thread(e) != thread for e in calls) / steps,
        "calls": {name: count / steps for name, count in counts.most_common()},
        "device_us": device_time(within, steps),
    }


def device_time(events: list[dict[str, Any]], steps: int, most: int = 30) -> dict[str, list[float]]:
    """The kernels and copies that take longest: microseconds per step and runs per step, by (shortened) name."""
    spent: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            spent[event["name"][:90]] += event["dur"]
            runs[event["name"][:90]] += 1
    return {name: [total / steps, runs[name] / steps] for name, total in spent.most_common(most)}


def _outermost(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without driver calls that a runtime call makes."""
    kept: list[dict[str, Any]] = []
    until = 0.0
    for call in sorted(calls, key=lambda e: (e["ts"], -e["dur"])):
        if call["ts"] >= until:
            kept.append(call)
            until = call["ts"] + call["dur"]
    return kept


def _thread(event: dict[str, Any]) -> tuple[Any, Any]:
    return event.get("pid"), event.get("tid")
