"""Counters and levels in Prometheus: /metrics of a server with SGLang's --enable-metrics.

`sglang:hetero_NAME_total` for what is counted, `sglang:hetero_NAME` for levels, under SGLang's own labels."""

from functools import cache
from typing import Any

from hetero_sglang.sglang.runtime import runtime


def logged(result: None, collector: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER SchedulerMetricsCollector.log_stats: ours whenever SGLang's own are set, under its labels."""
    runtime().labels = runtime().labels or dict(collector.labels)
    tell()


def tell() -> None:
    """Export what has been counted since the last time, and the levels of now; nothing where metrics are off."""
    state = runtime()
    if (labels := state.labels) is None:
        return
    counters = state.counters.as_dict()
    for name, value in counters.items():
        _metric("Counter", name, tuple(labels)).labels(**labels).inc(value - state.told.get(name, 0))
    state.told = counters
    for name, value in state.cache.levels().items():
        _metric("Gauge", name, tuple(labels)).labels(**labels).set(value)


@cache
def _metric(kind: str, name: str, labels: tuple[str, ...]) -> Any:
    """Made once per process."""
    import prometheus_client  # reads at import where SGLang has its processes' files

    options = {"multiprocess_mode": "mostrecent"} if kind == "Gauge" else {}
    what = f"{name} of /hetero/stats"
    return getattr(prometheus_client, kind)(f"sglang:hetero_{name}", what, labelnames=labels, **options)
