"""Counters and levels as Prometheus gauges: /metrics of a server with SGLang's --enable-metrics."""

from __future__ import annotations

from functools import cache
from typing import Any

from hetero_sglang.sglang.runtime import runtime


@cache
def gauge(name: str, labels: tuple[str, ...]) -> Any:
    """`sglang:hetero_NAME`, made once per process."""
    from prometheus_client import Gauge  # reads at import where SGLang has its processes' files

    return Gauge(
        f"sglang:hetero_{name}",
        f"{name} of /hetero/stats",
        labelnames=labels,
        multiprocess_mode="mostrecent",
    )


def logged(result: None, collector: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER SchedulerMetricsCollector.log_stats: ours whenever SGLang's own are set, under its labels."""
    labels = tuple(collector.labels)
    for name, value in runtime().cache.levels().items():
        gauge(name, labels).labels(**collector.labels).set(value)
