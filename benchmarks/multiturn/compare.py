"""Two runs of the same load side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hetero_sglang.errors import HeteroError

HIGHER = ("request_throughput", "input_token_throughput", "output_token_throughput", "goodput", "cache_hit_rate")
LOWER = tuple(
    f"{which}_{what}"
    for what in ("first_turn_ttft", "later_turn_ttft", "itl", "latency")
    for which in ("median", "p90", "p99")
)


def read(path: Path) -> dict[str, Any]:
    """A run's JSON. Raises HeteroError for what is none."""
    try:
        run = json.loads(path.read_text())
        return {"tag": run["tag"], "load": run["load"], "summary": run["summary"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HeteroError(f"{path} is no run of benchmarks.multiturn ({error!r}).") from error


def ratios(first: dict[str, Any], second: dict[str, Any]) -> dict[str, float]:
    """How many times better the second is; raises HeteroError where the loads differ."""
    if first["load"] != second["load"]:
        differs = sorted(name for name in first["load"] if first["load"][name] != second["load"].get(name))
        raise HeteroError(f"{first['tag']} and {second['tag']} are of different loads ({', '.join(differs)}).")
    one, two = first["summary"], second["summary"]
    found = {name: two[name] / one[name] for name in HIGHER if one.get(name) and two.get(name)}
    return found | {name: one[name] / two[name] for name in LOWER if one.get(name) and two.get(name)}


def table(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Markdown: both values and by how much the second is better."""
    lines = [f"| | {first['tag']} | {second['tag']} | times better |", "|---|---|---|---|"]
    for name, ratio in ratios(first, second).items():
        values = (f"{each['summary'][name]:.4g}" for each in (first, second))
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(values)} | {ratio:.2f} |")
    return "\n".join(lines)


def plot(pyplot: Any, first: dict[str, Any], second: dict[str, Any], path: Path) -> Path:
    """The ratios as bars."""
    found = ratios(first, second)
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.3 * len(found)), layout="constrained")
    axes.barh([name.replace("_", " ") for name in found], list(found.values()))
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.invert_yaxis()
    axes.set_xlabel(f"{second['tag']}: times better than {first['tag']}")
    scratch = path.with_name(f".{path.name}")
    figure.savefig(scratch, format="png", dpi=150)
    scratch.replace(path)
    pyplot.close(figure)
    return path
