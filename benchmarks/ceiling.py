"""What the bytes allow: a decode step cannot be faster than its reads of weights and KV."""

from __future__ import annotations

from typing import Any

from benchmarks import shapes


def ceiling(tokens: int, keep_ratio: float, weights: int | None = None) -> float:
    """How many times faster than dense a step over `tokens` tokens of all requests can be, by bytes alone.

    `weights`: bytes read of them, by default the whole checkpoint; `shapes.weight_bytes()` leaves the embedding
    table out, of which a step reads a few rows, and allows more.
    """
    read = shapes.parameter_bytes() if weights is None else weights
    kv = shapes.kv_bytes_per_token() * tokens
    return (read + kv) / (read + keep_ratio * kv)


def judge(row: dict[str, Any], dense: dict[str, Any]) -> dict[str, float]:
    """A heterocache case against the dense case of the same requests in the same run."""
    tokens, keep = row["batch"] * row["tokens"], float(row["policy"])
    ratio, allowed = dense["step_seconds"] / row["step_seconds"], ceiling(tokens, keep)
    return {
        "ratio": ratio,
        "ceiling": allowed,
        "percent_of_ceiling": 100 * ratio / allowed,
        "ceiling_without_embedding": ceiling(tokens, keep, shapes.weight_bytes()),
    }
