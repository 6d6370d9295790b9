"""Cases beside the dense one, their transfer floor and decode where no row comes."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.verdict import verdict


def row(policy: str, rate: float | None, mean: float, p50: float, hit: float, **more: Any) -> dict[str, Any]:
    return {
        "policy": policy, "fetch_rate": rate, "batch": 2, "tokens": 1000, "step_seconds": mean,
        "step_seconds_p50": p50, "first_token_seconds_prefix_hit": hit, **more,
    }  # fmt: skip


DENSE = row("full", None, 0.012, 0.010, 0.07)
IDLE = row("0.25", 0.0, 0.008, 0.005, 0.3, host_bytes_per_token=1e5)


def test_dense_rows_and_rows_without_a_dense_one_are_not_judged() -> None:
    assert verdict(DENSE, [DENSE], 1e9) == {}
    assert verdict(IDLE, [DENSE | {"tokens": 2000}], 1e9) == {}


def test_means_and_medians() -> None:
    told = verdict(IDLE, [DENSE])
    assert told["ratio"] == pytest.approx(1.5) and told["ratio_p50"] == pytest.approx(2)
    assert told["percent_of_ceiling"] == pytest.approx(150 / told["ceiling"])
    assert told["percent_of_ceiling_p50"] == pytest.approx(200 / told["ceiling"])
    assert "p50_of_rate_0" not in told and "floor_seconds" not in told


def test_rows_that_come_are_beside_decode_without_them() -> None:
    told = verdict(row("0.25", 0.05, 0.009, 0.0052, 0.3), [DENSE, IDLE])
    assert told["p50_of_rate_0"] == pytest.approx(1.04)
    assert "p50_of_rate_0" not in verdict(row("0.3", 0.05, 0.009, 0.0052, 0.3), [DENSE, IDLE]), "of another policy"


def test_a_hit_is_beside_its_copy_or_the_dense_hit() -> None:
    told = verdict(IDLE, [DENSE], bandwidth=1e9)
    assert told["floor_seconds"] == pytest.approx(0.2) and told["hit_of_floor"] == pytest.approx(1.5)
    fast = verdict(IDLE, [DENSE], bandwidth=1e11)
    assert fast["floor_seconds"] == pytest.approx(0.002) and fast["hit_of_floor"] == pytest.approx(0.3 / 0.07)
