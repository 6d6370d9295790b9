"""The table of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .energy import words

HEADER = (
    "row", "success", "efficiency", "hits / 100", "bumps / 100", "P50 ms", "P99 ms", "mean ms", "depth",
    "weights MB", "device KV MB", "GPU energy", "processor energy",
)  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line a row, and beneath it those that were skipped, with the reason."""
    lines = [HEADER, ["---"] * len(HEADER), *(_cells(each) for each in rows if "success" in each)]
    left_out = [f"- {each['name']}: {each['skipped']}" for each in rows if "skipped" in each]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return text + ("\n\nNot measured:\n\n" + "\n".join(left_out) if left_out else "") + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    joules = row["joules"]
    return [
        row["name"],
        f"{row['success']:.3f}",
        f"{row['efficiency']:.3f}",
        f"{row['hits_per_100_steps']:.2f}",
        f"{row['bumps_per_100_steps']:.2f}",
        f"{row['p50_ms']:.1f}",
        f"{row['p99_ms']:.1f}",
        f"{row['mean_ms']:.1f}",
        _depth(row),
        f"{row['weight_bytes'] / 1e6:.2f}",
        f"{row['kv_bytes'] / 1e6:.2f}",
        words(joules["gpu"], row["steps"]),
        words(joules["processor"], row["steps"]),
    ]


def _depth(row: dict[str, Any]) -> str:
    """Layers run for a token in its own step, on average."""
    counters = row["counters"]
    ran = counters["exit_layers_run"] / counters["exit_tokens"] if counters.get("exit_tokens") else row["layers"]
    return f"{ran:.1f}"
