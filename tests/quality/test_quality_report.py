"""Means, shares and tables from a fixed small input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.aggregate import aggregate
from benchmarks.quality.counters import COUNTERS, deltas, measured_ratio
from benchmarks.quality.plots import draw
from benchmarks.quality.report import report


def record(policy: str, ratio: float | None, task: str, length: int, score: float, **more: Any) -> dict[str, Any]:
    counters = dict.fromkeys(COUNTERS) if ratio is None else dict.fromkeys(COUNTERS, 2) | {"dense_bytes": 8}
    return {
        "policy": policy,
        "ratio": ratio,
        "task": task,
        "length": length,
        "seed": 0,
        "point": {},
        "score": score,
        "seconds": 2.0,
        "counters": counters,
        "integrity": [None, None] if ratio is None else ["ok", "ok"],
        "exchanges": [],
        **more,
    }


RECORDS = [
    record("full", None, "names", 2048, 1.0),
    record("full", None, "names", 4096, 0.5),
    record("full", None, "chains", 2048, 0.0),
    record("snapkv", 0.3, "names", 2048, 0.9),
    record("snapkv", 0.3, "names", 4096, 0.3),
    record("snapkv", 0.3, "chains", 2048, 0.0),
]


def test_the_report_is_this(tmp_path: Path) -> None:
    result = aggregate(RECORDS, {"quest at 0.3": "No server for quest at 0.3: no such policy"})
    assert report(result, {"commit": "abc", "date": "2026-01-02"}) == (Path(__file__).parent / "report.md").read_text()


def test_a_cells_score_is_the_mean_over_tasks_of_the_mean_over_lengths() -> None:
    full, snapkv = aggregate(RECORDS, {})["cells"]
    assert full["score"] == pytest.approx((0.75 + 0) / 2)
    assert snapkv["score"] == pytest.approx((0.6 + 0) / 2)
    assert snapkv["of_full"] == pytest.approx(0.6 / 0.75)


def test_shares_are_of_the_same_samples() -> None:
    more = [*RECORDS, record("snapkv", 0.3, "names", 2048, 0.0, seed=1)]
    [row] = [
        r for r in aggregate(more, {})["rows"] if (r["policy"], r["task"], r["length"]) == ("snapkv", "names", 2048)
    ]
    assert (row["score"], row["of_full"], row["samples"]) == (0.45, 0.9, 2)


def test_seeds_give_a_deviation() -> None:
    records = [record("fier", 0.5, "names", 2048, score, seed=seed) for seed, score in enumerate((0.4, 0.6, 0.8))]
    [cell] = aggregate(records, {})["cells"]
    assert (cell["seeds"], cell["deviation"]) == (3, pytest.approx(0.2))
    assert cell["of_full"] is None


def test_bytes_are_summed_before_they_are_divided() -> None:
    assert measured_ratio([{"kept_bytes": 1, "dense_bytes": 2}, {"kept_bytes": 1, "dense_bytes": 6}]) == 0.25
    assert measured_ratio([{"kept_bytes": None, "dense_bytes": None}]) is None
    assert measured_ratio([{"kept_bytes": 0, "dense_bytes": 0}]) is None


def test_deltas_need_both_sides() -> None:
    grown = deltas({"late_fetches": 2}, {"late_fetches": 5, "kept_bytes": 3})
    assert (grown["late_fetches"], grown["kept_bytes"]) == (3, None)
    assert set(deltas(None, None).values()) == {None}


def test_plots_are_drawn_for_what_there_is(tmp_path: Path) -> None:
    trace = [{"tokens": 8 * at, "drift_triggers": at, "fetched_rows": 0, "late_fetches": 0} for at in range(4)]
    records = [
        *RECORDS,
        *(
            record("snapkv", ratio, "needle", length, depth, point={"depth": depth})
            for ratio in (0.3, 0.5)
            for length in (2048, 4096)
            for depth in (0.0, 0.5, 1.0)
        ),
        record("heterocache", 0.5, "long", 2048, 1.0, exchanges=[{"trace": trace}, {}]),
    ]
    drawn = draw(aggregate(records, {}), records, tmp_path)
    assert [path.name for path in drawn] == ["accuracy.png", "needle.png", "drift.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.png", "drift.png", "needle.png"]
    few = aggregate(RECORDS, {})
    assert [path.name for path in draw(few, RECORDS, tmp_path)] == ["accuracy.png"]
    assert draw(aggregate([], {}), [], tmp_path) == []
