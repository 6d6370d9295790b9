"""The report: tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from .aggregate import Row
from .counters import EVENTS


def report(result: dict[str, Any], run: dict[str, Any], title: str = "Quality at equal memory") -> str:
    """`result` as from `aggregate`, `run` as from `run_information`."""
    parts = [f"# {title}", _run_line(run)]
    parts += ["## Cells", _CELLS_NOTE, _table(_cell_header(), map(_cell_row, result["cells"]))]
    tasks = list(dict.fromkeys(row["task"] for row in result["rows"]))
    parts += ["## Tasks", _TASKS_NOTE, _table(["policy", "keep ratio", *tasks], _task_rows(result["rows"], tasks))]
    lengths = sorted({row["length"] for row in result["rows"]})
    header = ["policy", "keep ratio", "task", *(f"{length:,}" for length in lengths)]
    parts += ["## Lengths", _LENGTHS_NOTE, _table(header, _length_rows(result["rows"], lengths))]
    if result["failures"]:
        parts += ["## Not measured", "\n".join(f"- {cell}: {why}" for cell, why in result["failures"].items())]
    return "\n\n".join(parts) + "\n"


_CELLS_NOTE = (
    "Score: mean over tasks of the share right, ± the standard deviation between seeds. Of full: the same as a share "
    "of what `full` gets right. Measured: device KV bytes that compressed requests held at the end of their prefill, "
    "over dense."
)
_TASKS_NOTE = "Share right, mean over lengths."
_LENGTHS_NOTE = "Per length in tokens: share right, and in brackets as a share of `full` on the same samples."


def _run_line(run: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in run.items())


def _cell_header() -> list[str]:
    events = [name.replace("_", " ") for name in EVENTS]
    return ["policy", "keep ratio", "measured", "score", "of full", "samples", *events, "integrity"]


def _cell_row(cell: Row) -> list[str]:
    score = f"{cell['score']:.3f}" + ("" if cell["deviation"] is None else f" ± {cell['deviation']:.3f}")
    events = ["" if cell[name] is None else str(cell[name]) for name in EVENTS]
    return [
        cell["policy"],
        _ratio(cell["ratio"]),
        "" if cell["measured_ratio"] is None else f"{cell['measured_ratio']:.4f}",
        score,
        _percent(cell["of_full"]),
        str(cell["samples"]),
        *events,
        "; ".join(cell["integrity"]),
    ]


def _task_rows(rows: Sequence[Row], tasks: Sequence[str]) -> list[list[str]]:
    scores: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        scores.setdefault((row["policy"], _ratio(row["ratio"])), {}).setdefault(row["task"], []).append(row["score"])
    return [
        [*cell, *(f"{fmean(found[task]):.3f}" if task in found else "" for task in tasks)]
        for cell, found in scores.items()
    ]


def _length_rows(rows: Sequence[Row], lengths: Sequence[int]) -> list[list[str]]:
    scores: dict[tuple[str, str, str], dict[int, str]] = {}
    for row in rows:
        shown = f"{row['score']:.3f} ({_percent(row['of_full'])})"
        scores.setdefault((row["policy"], _ratio(row["ratio"]), row["task"]), {})[row["length"]] = shown
    return [[*names, *(found.get(length, "") for length in lengths)] for names, found in scores.items()]


def _table(header: Sequence[str], rows: Any) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"
