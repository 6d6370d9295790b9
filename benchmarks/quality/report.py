"""The report: tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .aggregate import Row
from .counters import EVENTS


def report(result: dict[str, Any], run: dict[str, Any], title: str = "Quality at equal memory") -> str:
    """`result` as from `aggregate`, `run` as from `run_information`."""
    parts = [f"# {title}", _run_line(run)]
    compared = [cell for cell in result["cells"] if cell["ratio"] is not None and cell["of_full"] is not None]
    if compared:
        parts += ["## Summary", _SUMMARY_NOTE, _summary(compared)]
    parts += ["## Cells", _CELLS_NOTE, _table(_cell_header(), map(_cell_row, result["cells"]))]
    tasks = list(dict.fromkeys(row["task"] for row in result["rows"]))
    parts += ["## Tasks", _TASKS_NOTE, _across(result["tasks"], ("policy", "ratio"), "task", tasks)]
    lengths = sorted({row["length"] for row in result["rows"]})
    parts += ["## Lengths", _LENGTHS_NOTE, _across(result["lengths"], ("policy", "ratio"), "length", lengths)]
    both = _across(result["rows"], ("policy", "ratio", "task"), "length", lengths)
    parts += ["## Tasks by length", _BOTH_NOTE, both]
    if result["failures"]:
        parts += ["## Not measured", "\n".join(f"- {cell}: {why}" for cell, why in result["failures"].items())]
    return "\n\n".join(parts) + "\n"


_SUMMARY_NOTE = (
    "What each policy keeps of what `full` gets right on the same samples, ± the standard error over seeds, and in "
    "brackets the points behind the best policy at that keep ratio."
)
_CELLS_NOTE = (
    "Score: mean over tasks of the share right, ± the standard deviation between seeds. Of full: the same as a share "
    "of what `full` gets right. Measured: device KV bytes that compressed requests held at the end of their prefill, "
    "over dense."
)
_SHOWN = "± its standard error; in brackets, as a share of `full` on the same samples."
_TASKS_NOTE = f"Share right, mean over lengths and seeds {_SHOWN}"
_LENGTHS_NOTE = f"Per length in tokens: share right, mean over the tasks that have this length and over seeds {_SHOWN}"
_BOTH_NOTE = f"Per length in tokens: share right, mean over seeds {_SHOWN}"
_HEADINGS = {"ratio": "keep ratio"}
_TIE = 1e-9  # equal scores, summed in another order


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


def _summary(cells: Sequence[Row]) -> str:
    ratios = sorted({cell["ratio"] for cell in cells})
    found: dict[str, dict[float, str]] = {}
    for cell in cells:
        error = cell["of_full_error"]
        spread = "" if error is None else f" ± {100 * error:.1f}"
        behind = f"{100 * cell['behind']:.1f} behind" if cell["behind"] > _TIE else "best"
        found.setdefault(cell["policy"], {})[cell["ratio"]] = f"{_percent(cell['of_full'])}{spread} ({behind})"
    rows = ([policy, *(at.get(ratio, "") for ratio in ratios)] for policy, at in found.items())
    return _table(["policy", *map(_ratio, ratios)], rows)


def _across(rows: Sequence[Row], down: Sequence[str], across: str, columns: Sequence[Any]) -> str:
    """A table with a line per values of `down` and a column per value of `across`."""
    found: dict[tuple[Any, ...], dict[Any, str]] = {}
    for row in rows:
        spread = "" if row["error"] is None else f" ± {row['error']:.3f}"
        shown = f"{row['score']:.3f}{spread} ({_percent(row['of_full'])})"
        found.setdefault(tuple(row[name] for name in down), {})[row[across]] = shown
    lines = ([*map(_word, names), *(cells.get(column, "") for column in columns)] for names, cells in found.items())
    header = [*(_HEADINGS.get(name, name) for name in down), *map(_word, columns)]
    return _table(header, lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _word(value: Any) -> str:
    """A name, a ratio or a length."""
    return f"{value:,}" if isinstance(value, int) else value if isinstance(value, str) else _ratio(value)


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"
