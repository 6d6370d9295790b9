"""The table of metrics keeps Prometheus' conventions."""

from __future__ import annotations

import re

from hetero_sglang.sglang.metrics import COUNTER, GAUGE, HISTOGRAM, METRICS


def test_names_follow_the_conventions() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", metric.name) and metric.kind in (COUNTER, GAUGE, HISTOGRAM)
        assert (metric.kind == COUNTER) == metric.name.endswith("_total")
        assert metric.kind != HISTOGRAM or metric.name.endswith(("_seconds", "_ratio"))
        assert metric.help[0].isupper() or metric.help[0].isdigit(), metric.help
        assert metric.help.endswith(".") and len(metric.help.split()) > 4 and "\n" not in metric.help
