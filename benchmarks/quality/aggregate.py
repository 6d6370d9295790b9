"""From samples to means: per cell, per cell and task, per cell and length, and per all three."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from .counters import EVENTS, measured_ratio, total
from .store import Record

Row = dict[str, Any]
FULL = ("full", None)


def aggregate(records: Sequence[Record], failures: dict[str, str]) -> dict[str, Any]:
    """`cells`, `tasks`, `lengths` and `rows` (per task and length), and why cells are missing, as JSON values.

    A mean is over tasks, of each over its lengths, of each over its samples: a task with many samples weighs no more
    than others. Shares are of what `full` got on the same samples.
    """
    full = {_sample(r): r["score"] for r in records if _cell(r) == FULL}
    return {
        "cells": _behind(_rows(records, full)),
        "tasks": _rows(records, full, "task"),
        "lengths": _rows(records, full, "length"),
        "rows": _rows(records, full, "task", "length"),
        "failures": failures,
    }


def _rows(records: Sequence[Record], full: dict[Any, float], *names: str) -> list[Row]:
    """One per cell and values of `names`."""
    rows = []
    for values, group in _groups(records, lambda r: (*_cell(r), *(r[name] for name in names))):
        both = [r for r in group if _sample(r) in full]
        per_seed = [_over_tasks(seed) for seed in _per_seed(group)]
        shares = [share for seed in _per_seed(both) if (share := _share(seed, full)) is not None]
        rows.append(
            {
                **dict(zip(("policy", "ratio", *names), values, strict=True)),
                "samples": len(group),
                "score": _over_tasks(group),
                "of_full": _share(both, full),
                "of_full_error": _error(shares),
                "seeds": len(per_seed),
                "deviation": _deviation(per_seed),
                "error": _error(per_seed),
                "seconds": (fmean if names else sum)(r["seconds"] for r in group),  # of one sample, or of a whole cell
                "integrity": sorted({str(state) for r in group for state in r["integrity"] if state is not None}),
                **_counted(group),
            }
        )
    return rows


def _behind(cells: list[Row]) -> list[Row]:
    """The same with `behind`: how much less of full a cell has than the best one at its ratio."""
    best: dict[float | None, float] = {}
    for cell in cells:
        best[cell["ratio"]] = max(best.get(cell["ratio"], 0.0), cell["of_full"] or 0.0)
    return [
        {**cell, "behind": None if cell["of_full"] is None else best[cell["ratio"]] - cell["of_full"]} for cell in cells
    ]


def _over_tasks(records: Iterable[Record]) -> float:
    return fmean(
        fmean(fmean(r["score"] for r in same) for _, same in _groups(task, lambda r: r["length"]))
        for _, task in _groups(records, lambda r: r["task"])
    )


def _share(records: Sequence[Record], full: dict[Any, float]) -> float | None:
    """Their mean over that of `full`; None where `full` has no such samples, or got nothing right."""
    reference = _over_tasks({**r, "score": full[_sample(r)]} for r in records) if records else 0.0
    return _over_tasks(records) / reference if reference else None


def _per_seed(records: Sequence[Record]) -> list[list[Record]]:
    """Seeds that have every sample; the mean over a part of one is of something else, and no deviation from others."""
    seeds = [seed for _, seed in _groups(records, lambda r: r["seed"])]
    return [seed for seed in seeds if len(seed) == max(map(len, seeds))]


def _deviation(per_seed: Sequence[float]) -> float | None:
    """The standard deviation between seeds: how far one more seed may be from the mean."""
    return stdev(per_seed) if len(per_seed) > 1 else None


def _error(per_seed: Sequence[float]) -> float | None:
    """The standard error of the mean over seeds, which is what differences of means must be compared with."""
    return stdev(per_seed) / sqrt(len(per_seed)) if len(per_seed) > 1 else None


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
