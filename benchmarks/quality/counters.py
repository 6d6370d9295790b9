"""The server's counters over one sample."""

from __future__ import annotations

from typing import Any

BYTES = ("kept_bytes", "dense_bytes")  # of compressed requests at the end of their prefill
EVENTS = ("compressed_requests", "drift_triggers", "fetched_rows", "late_rows", "anchor_refreshes", "failed_rankings")
COUNTERS = (*BYTES, *EVENTS)

Stats = dict[str, Any] | None


def deltas(before: Stats, after: Stats) -> dict[str, int | None]:
    """What each counter grew by; None for one that the server does not have."""
    old, new = before or {}, after or {}
    return {name: new[name] - old[name] if name in old and name in new else None for name in COUNTERS}


def total(counted: list[dict[str, int | None]], name: str) -> int | None:
    """The sum over samples of those that have the counter; None if none has."""
    known = [value for each in counted if (value := each.get(name)) is not None]
    return sum(known) if known else None


def measured_ratio(counted: list[dict[str, int | None]]) -> float | None:
    """Device bytes kept over dense bytes; None if nothing was compressed or the server does not count them."""
    kept, dense = (total(counted, name) for name in BYTES)
    return kept / dense if kept is not None and dense else None
