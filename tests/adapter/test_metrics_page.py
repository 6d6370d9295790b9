"""The table of metrics keeps Prometheus' conventions, and docs/metrics.md is what it says."""

from __future__ import annotations

import re
from pathlib import Path

from hetero_sglang.sglang.metrics import COUNTER, GAUGE, HISTOGRAM, METRICS
from hetero_sglang.sglang.metrics_page import page


def test_names_follow_the_conventions() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", metric.name) and metric.kind in (COUNTER, GAUGE, HISTOGRAM)
        assert (metric.kind == COUNTER) == metric.name.endswith("_total")
        assert metric.kind != HISTOGRAM or metric.name.endswith("_seconds")
        assert metric.help[0].isupper() or metric.help[0].isdigit(), metric.help
        assert metric.help.endswith(".") and len(metric.help.split()) > 4 and "\n" not in metric.help


def test_the_page_is_what_the_table_says() -> None:
    path = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert path.read_text() == page(), "write it anew with python -m hetero_sglang.sglang.metrics_page"
