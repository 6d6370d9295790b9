"""Our metrics in the scheduler process's Prometheus registry, whose files SGLang's /metrics reads."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from hetero_sglang.cache.durations import Durations
from hetero_sglang.cache.shares import Shares
from hetero_sglang.sglang import early_exit
from hetero_sglang.sglang.metrics import COUNTER, GAUGE, HISTOGRAM, METRICS, PREFIX, SECONDS, TENTHS, Metric, Reading
from hetero_sglang.sglang.runtime import Runtime, runtime

_SOON = 1.0  # seconds between two exports while nothing runs


class Exporter:
    """Made once per process, under SGLang's own labels. `read`: what metrics read their numbers of, now."""

    def __init__(self, labels: dict[str, Any], metrics: Sequence[Metric], read: Callable[[], Any]) -> None:
        import prometheus_client  # reads at import where SGLang has its processes' files

        self.labels, self.metrics, self.read, self.at = labels, metrics, read, 0.0
        self._series: dict[tuple[str, str], Any] = {}  # by metric and the value of its own label
        self._counted: dict[tuple[str, str], float] = {}  # as last exported
        self._families: dict[str, Any] = {}
        now = read()
        for metric in metrics:
            names = [*labels, *([metric.label] if metric.label else [])]
            kind = getattr(prometheus_client, metric.kind.capitalize())
            value = metric.read(now)
            more: dict[str, Any] = {}
            if metric.kind == GAUGE:
                more = {"multiprocess_mode": "mostrecent"}
            if metric.kind == HISTOGRAM:
                more = {"buckets": SECONDS if isinstance(value, Durations) else TENTHS}
            self._families[metric.name] = kind(PREFIX + metric.name, metric.help, labelnames=names, **more)
            if isinstance(value, Durations):
                value.listen = self._families[metric.name].labels(**labels).observe
        self.tell()

    def tell(self) -> None:
        """Export what has been counted since the last time, and what is so now."""
        self.at = time.monotonic()
        now = self.read()
        for metric in self.metrics:
            value = metric.read(now)
            if isinstance(value, Durations):
                continue
            if isinstance(value, Shares):
                self._share(metric.name, value)
                continue
            for which, number in value.items() if isinstance(value, Mapping) else [("", value)]:
                key = metric.name, which
                if key not in self._series:
                    mine = {metric.label: which} if metric.label else {}
                    self._series[key] = self._families[metric.name].labels(**self.labels, **mine)
                if metric.kind == COUNTER:
                    self._series[key].inc(number - self._counted.get(key, 0))
                    self._counted[key] = number
                else:
                    self._series[key].set(number)

    def _share(self, name: str, value: Shares) -> None:
        """Counted elsewhere, so a histogram takes them in as its own counts are."""
        family = self._families[name].labels(**self.labels)
        counters = *family._buckets[: len(value.parts)], family._sum
        for which, (counter, number) in enumerate(zip(counters, (*value.parts, value.total), strict=True)):
            key = name, str(which)
            counter.inc(number - self._counted.get(key, 0))
            self._counted[key] = number


def start(scheduler: Any) -> None:
    """Once the scheduler is built: what this rank exports."""
    runtime().exporter = exporter_of(scheduler, METRICS, partial(_reading, runtime()))


def exporter_of(scheduler: Any, metrics: Sequence[Metric], read: Callable[[], Any]) -> Exporter | None:
    """An exporter where SGLang exports from this rank (--enable-metrics)."""
    context = scheduler.metrics_collector_context
    if not context.current_scheduler_metrics_enabled:
        return None
    return Exporter(dict(context.collector.labels), metrics, read)


def _reading(state: Runtime) -> Reading:
    if state.engine is not None:
        state.engine.stats()  # brings the counters up to date
    return Reading(state)


def tell() -> None:
    """Export now what there is, of early exit too."""
    if (exporter := runtime().exporter) is not None:
        exporter.tell()
    early_exit.tell()


def logged(result: None, collector: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER SchedulerMetricsCollector.log_stats: ours whenever SGLang's own are set."""
    tell()


def tell_soon() -> None:
    """While nothing runs: what passes with time is not older than a second."""
    exporter = runtime().exporter
    if exporter is not None and time.monotonic() - exporter.at > _SOON:
        exporter.tell()
