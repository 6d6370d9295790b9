"""What a run leaves behind: aggregate.json, report.md and plots."""

from __future__ import annotations

import json
from typing import Any

from .aggregate import aggregate
from .matrix import Matrix
from .report import report


def write(matrix: Matrix, information: dict[str, Any], plots: bool) -> None:
    """Write them for what is finished, and print the report. Raises HeteroError for plots without matplotlib."""
    records = list(matrix.finished())
    result = aggregate(records, matrix.failures)
    commits = sorted({record["commit"] for record in records})
    run = {**information, "measured at": " ".join(commits)}
    matrix.store.write("aggregate.json", json.dumps({"run": run, **result}, indent=1) + "\n")
    text = report(result, run)
    print(text)
    print("wrote", matrix.store.write("report.md", text))
    if plots:
        from .plots import draw

        for path in draw(result, records, matrix.store.folder):
            print("wrote", path)
