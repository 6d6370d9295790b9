"""What a heterocache case comes to: beside the dense one, its ceiling, its copies and decode where no row comes."""

from __future__ import annotations

from typing import Any

from benchmarks.ceiling import judge


def verdict(row: dict[str, Any], rows: list[dict[str, Any]], bandwidth: float | None = None) -> dict[str, Any]:
    """Fields for `row`, from the `rows` before it; empty for a dense row, or where no dense row is like it.

    `ratio` and `percent_of_ceiling` are of the means, those that end in _p50 of the medians. `bandwidth`: bytes per
    second from pinned memory.
    """
    like = [r for r in rows if all(r[name] == row[name] for name in ("batch", "tokens"))]
    dense = next((r for r in like if r["policy"] == "full"), None)
    if row["policy"] == "full" or dense is None:
        return {}
    medians = judge(_median(row), _median(dense))
    told = judge(row, dense) | {f"{name}_p50": medians[name] for name in ("ratio", "percent_of_ceiling")}
    idle = next((r for r in like if r["policy"] == row["policy"] and r["fetch_rate"] == 0), None)
    if row["fetch_rate"] and idle:
        told["p50_of_rate_0"] = row["step_seconds_p50"] / idle["step_seconds_p50"]
    if bandwidth:
        floor = row["batch"] * row["tokens"] * row["host_bytes_per_token"] / bandwidth
        allowed = max(floor, dense["first_token_seconds_prefix_hit"])
        told |= {"floor_seconds": floor, "hit_of_floor": row["first_token_seconds_prefix_hit"] / allowed}
    return told


def _median(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"step_seconds": row["step_seconds_p50"]}
