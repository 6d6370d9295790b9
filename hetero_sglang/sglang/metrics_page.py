"""docs/metrics.md, of the table: `python -m hetero_sglang.sglang.metrics_page > docs/metrics.md`."""

from hetero_sglang.sglang.metrics import HISTOGRAM, METRICS, PREFIX, SECONDS

_INTRODUCTION = f"""# Metrics

With SGLang's `--enable-metrics` these are on the server's `/metrics` beside SGLang's own, under the same labels
(`model_name`, `tp_rank` and so on), and one of their own where it is named here. They are of the rank that SGLang
exports: the first, or each with `--enable-metrics-for-all-schedulers`. Counters count from the start. Numbers are
exported whenever SGLang exports its own, and once a second while nothing runs.

This page is written from the table in `hetero_sglang/sglang/metrics.py`, by
`python -m hetero_sglang.sglang.metrics_page > docs/metrics.md`.

| `{PREFIX}` | kind | label | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The whole file."""
    rows = [
        f"| `{metric.name}` | {metric.kind} | {f'`{metric.label}`' if metric.label else ''} | {metric.help} |\n"
        for metric in METRICS
    ]
    named = ", ".join(f"`{metric.name}`" for metric in METRICS if metric.kind == HISTOGRAM)
    bounds = ", ".join(f"{bound:g}" for bound in SECONDS)
    return f"{_INTRODUCTION}{''.join(rows)}\nThe buckets of {named} end at {bounds} seconds.\n"


if __name__ == "__main__":
    print(page(), end="")
