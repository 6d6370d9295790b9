"""From samples to means: per cell, task and length, and per cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from .counters import EVENTS, measured_ratio, total
from .store import Record

Row = dict[str, Any]
FULL = ("full", None)


def aggregate(records: Sequence[Record], failures: dict[str, str]) -> dict[str, Any]:
    """`rows` per cell, task and length, `cells` per cell, and why cells are missing, as JSON values."""
    rows = _rows(records)
    return {"cells": _cells(records, rows), "rows": rows, "failures": failures}


def _rows(records: Sequence[Record]) -> list[Row]:
    """Means over points and seeds; shares are of what `full` got on the same samples."""
    full = {_sample(r): r["score"] for r in records if _cell(r) == FULL}
    rows = []
    for (policy, ratio, task, length), group in _groups(records, lambda r: (*_cell(r), r["task"], r["length"])):
        scores = [r["score"] for r in group]
        both = [(r["score"], full[_sample(r)]) for r in group if _sample(r) in full]
        rows.append(
            {
                "policy": policy,
                "ratio": ratio,
                "task": task,
                "length": length,
                "samples": len(group),
                "score": fmean(scores),
                "of_full": _share(both),
                **_spread([fmean(r["score"] for r in seed) for _, seed in _groups(group, lambda r: r["seed"])]),
                "seconds": fmean(r["seconds"] for r in group),
                **_counted(group),
            }
        )
    return rows


def _cells(records: Sequence[Record], rows: Sequence[Row]) -> list[Row]:
    """Means over tasks, each the mean over its lengths: a task with many samples weighs no more than others."""
    full = {(row["task"], row["length"]): row["score"] for row in rows if _cell(row) == FULL}
    cells = []
    for (policy, ratio), group in _groups(rows, _cell):
        own = [r for r in records if _cell(r) == (policy, ratio)]
        both = [row for row in group if (row["task"], row["length"]) in full]
        reference = [{**row, "score": full[row["task"], row["length"]]} for row in both]
        cells.append(
            {
                "policy": policy,
                "ratio": ratio,
                "samples": len(own),
                "score": _over_tasks(group),
                "of_full": _share([(_over_tasks(both), _over_tasks(reference))]) if both else None,
                **_spread([_over_tasks(seed) for _, seed in _groups(own, lambda r: r["seed"])]),
                "seconds": sum(r["seconds"] for r in own),
                "integrity": sorted({str(state) for r in own for state in r["integrity"] if state is not None}),
                **_counted(own),
            }
        )
    return cells


def _over_tasks(rows: Iterable[Row]) -> float:
    return fmean(
        fmean(fmean(row["score"] for row in same) for _, same in _groups(task, lambda row: row["length"]))
        for _, task in _groups(rows, lambda row: row["task"])
    )


def _share(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Sum of the first over sum of the second; None where the second got nothing right."""
    reference = sum(theirs for _, theirs in pairs)
    return sum(ours for ours, _ in pairs) / reference if reference else None


def _spread(per_seed: list[float]) -> Row:
    """The standard deviation between seeds, which is what differences must be compared with."""
    return {"seeds": len(per_seed), "deviation": stdev(per_seed) if len(per_seed) > 1 else None}


def _counted(records: Sequence[Record]) -> Row:
    counted = [r["counters"] for r in records]
    return {"measured_ratio": measured_ratio(counted), **{name: total(counted, name) for name in EVENTS}}


def _cell(record: Record) -> tuple[str, float | None]:
    return record["policy"], record["ratio"]


def _sample(record: Record) -> tuple[Any, ...]:
    return record["task"], record["length"], record["seed"], str(record["point"])


def _groups(records: Iterable[Record], by: Callable[[Record], Any]) -> list[tuple[Any, list[Record]]]:
    """In order of first appearance."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(by(record), []).append(record)
    return list(groups.items())
