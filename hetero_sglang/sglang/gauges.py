"""Counters and levels in Prometheus: /metrics of a server with SGLang's --enable-metrics."""

from __future__ import annotations

from functools import cache
from typing import Any

from hetero_sglang.sglang.runtime import runtime


class Exporter:
    """`sglang:hetero_NAME_total` for what is counted, `sglang:hetero_NAME` for levels, under SGLang's own labels."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        self.told: dict[str, int] = {}

    def tell(self, counters: dict[str, int], levels: dict[str, int]) -> None:
        """What has been counted since the last time, and the levels of now."""
        for name, value in counters.items():
            _metric("Counter", name, tuple(self.labels)).labels(**self.labels).inc(value - self.told.get(name, 0))
        self.told = counters
        for name, value in levels.items():
            _metric("Gauge", name, tuple(self.labels)).labels(**self.labels).set(value)


@cache
def _metric(kind: str, name: str, labels: tuple[str, ...]) -> Any:
    """Made once per process."""
    import prometheus_client  # reads at import where SGLang has its processes' files

    options = {"multiprocess_mode": "mostrecent"} if kind == "Gauge" else {}
    what = f"{name} of /hetero/stats"
    return getattr(prometheus_client, kind)(f"sglang:hetero_{name}", what, labelnames=labels, **options)


def logged(result: None, collector: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER SchedulerMetricsCollector.log_stats: ours whenever SGLang's own are set, under its labels."""
    state = runtime()
    if state.exporter is None:
        state.exporter = Exporter(dict(collector.labels))
    tell()


def tell() -> None:
    """Export what is known now, where metrics are on."""
    state = runtime()
    if state.exporter is not None:
        state.exporter.tell(state.counters.as_dict(), state.cache.levels())
