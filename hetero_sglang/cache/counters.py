"""What the cache counts. Plain integers, owned by the scheduler's thread, read by /hetero/stats and Prometheus."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Counters:
    """Totals since start."""

    requests: int = 0  # working sets begun
    compressed_requests: int = 0  # of these, longer than a working set at prefill end
    kept_bytes: int = 0  # device bytes these hold, indexes included, and
    dense_bytes: int = 0  # what plain SGLang would hold for them
    drift_checks: int = 0  # satellites' rows compared with what their pivot looks at
    drift_triggers: int = 0  # satellites whose pivot looked beyond them
    reassigned: int = 0  # heads that were given another pivot
    orphaned: int = 0  # satellites that no pivot resembles any more
    anchor_refreshes: int = 0  # anchors scored by the worker
    fetches: int = 0  # fetches sent to the worker
    fetched_rows: int = 0  # rows published into working sets
    fetched_bytes: int = 0
    late_fetches: int = 0  # fetches that had not arrived when the next step ran
    late_rows: int = 0  # rows a step wanted that did not come in it: beyond the bound, or no row was free
    dropped_rows: int = 0  # rows whose slot was freed, or whose request ended, on the way
    failed_fetches: int = 0  # the worker died, stalled or answered nonsense
    refused_fetches: int = 0  # staging ring full or worker down
    refused_growth: int = 0  # a long generation found the hot pool full and began to compress
    waiting_for_hot_pages: int = 0  # admission attempts put off because the hot pool was full
    worker_restarts: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)
