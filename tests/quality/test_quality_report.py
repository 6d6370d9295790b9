"""Means, shares and tables from a fixed small input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.aggregate import aggregate
from benchmarks.quality.counters import COUNTERS, deltas, measured_ratio
from benchmarks.quality.plots import draw, load_pyplot
from benchmarks.quality.plots.accuracy import accuracy
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


# Two seeds: of three samples each, `snapkv` loses some with either, `quest` with the first alone.
SEEDS = [
    record(policy, ratio, task, length, score, seed=seed)
    for policy, ratio, scores in (
        ("full", None, [(1.0, 0.5, 1.0), (1.0, 1.0, 0.5)]),
        ("snapkv", 0.3, [(0.6, 0.2, 0.2), (0.8, 0.6, 0.1)]),
        ("quest", 0.3, [(0.9, 0.5, 1.0), (1.0, 1.0, 0.5)]),
        ("snapkv", 0.5, [(1.0, 0.5, 1.0), (1.0, 1.0, 0.5)]),
    )
    for seed, of_seed in enumerate(scores)
    for (task, length), score in zip([("names", 2048), ("names", 4096), ("chains", 2048)], of_seed, strict=True)
]


def section(text: str, title: str) -> list[str]:
    """The table of a report's section, without its header."""
    lines = text.split(f"## {title}\n")[1].split("\n## ")[0].splitlines()
    return [line for line in lines if line.startswith("| ")][2:]


def test_tasks_and_lengths_have_the_standard_error_over_seeds_and_the_share_of_full() -> None:
    text = report(aggregate(SEEDS, {}), {})
    # names: (0.6 + 0.2) / 2 and (0.8 + 0.6) / 2 against 0.75 and 1; chains: 0.2 and 0.1 against 1 and 0.5.
    assert "| snapkv | 0.3 | 0.550 ± 0.150 (62.9%) | 0.150 ± 0.050 (20.0%) |" in section(text, "Tasks")
    # 2,048: (0.6 + 0.2) / 2 and (0.8 + 0.1) / 2 against 1 and 0.75; 4,096 has names alone.
    assert "| snapkv | 0.3 | 0.425 ± 0.025 (48.6%) | 0.400 ± 0.200 (53.3%) |" in section(text, "Lengths")
    assert "| snapkv | 0.3 | chains | 0.150 ± 0.050 (20.0%) |  |" in section(text, "Tasks by length")


def test_the_summary_tells_how_far_behind_the_best_a_policy_is() -> None:
    # snapkv at 0.3: (0.55 + 0.15) / 2 of (0.875 + 0.75) / 2; by seeds 0.3 / 0.875 and 0.4 / 0.75.
    # quest: (0.85 + 0.75) / 2; by seeds 0.85 / 0.875 and 1.
    assert section(report(aggregate(SEEDS, {}), {}), "Summary") == [
        "| snapkv | 43.1% ± 9.5 (55.4 behind) | 100.0% ± 0.0 (best) |",
        "| quest | 98.5% ± 1.4 (best) |  |",
    ]


def test_without_full_there_is_no_summary() -> None:
    assert "Summary" not in report(aggregate(SEEDS[6:], {}), {})
    assert "Summary" not in report(aggregate(SEEDS[:6], {}), {})


def test_an_unfinished_seed_makes_no_error() -> None:
    [_, snapkv] = aggregate([r for r in SEEDS if r["ratio"] != 0.5 and r["policy"] != "quest"][:-1], {})["cells"]
    assert (snapkv["samples"], snapkv["seeds"], snapkv["error"], snapkv["of_full_error"]) == (5, 1, None, None)


def test_a_cell_is_compared_with_full_on_its_own_samples() -> None:
    [_, snapkv] = aggregate([*SEEDS[:6], *SEEDS[6:9]], {})["cells"]  # the first seed alone
    assert snapkv["of_full"] == pytest.approx(0.3 / 0.875)


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
    grown = deltas({"late_rows": 2}, {"late_rows": 5, "kept_bytes": 3})
    assert (grown["late_rows"], grown["kept_bytes"]) == (3, None)
    assert set(deltas(None, None).values()) == {None}


def test_accuracy_is_drawn_over_measured_bytes() -> None:
    figure = accuracy(load_pyplot(), aggregate(SEEDS, {})["cells"])
    lines = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in figure.axes[0].containers}
    assert lines["snapkv"] == [[0.25, pytest.approx(0.35)], [0.25, pytest.approx(0.8125)]]
    longer = [{**r, "counters": r["counters"] | {"kept_bytes": 30, "dense_bytes": 40}} for r in SEEDS if r["ratio"]]
    for r in longer:  # bytes are summed over lengths before they are divided
        if r["length"] == 2048:
            r["counters"] |= {"kept_bytes": 5, "dense_bytes": 10}
    figure = accuracy(load_pyplot(), aggregate(longer, {})["cells"])
    assert figure.axes[0].containers[0].lines[0].get_xdata().tolist() == [pytest.approx(40 / 60)] * 2
    assert "measured" in figure.axes[0].get_xlabel()


def test_plots_are_drawn_for_what_there_is(tmp_path: Path) -> None:
    trace = [{"tokens": 8 * at, "drift_triggers": at, "fetched_rows": 0, "late_rows": 0} for at in range(4)]
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
