"""The ceilings that are quoted: Llama-3.1-8B's shape, by bytes alone."""

from __future__ import annotations

import pytest

from benchmarks import shapes
from benchmarks.ceiling import ceiling, judge

K = 1024


@pytest.mark.parametrize(
    ("requests", "tokens", "keep_ratio", "allowed"),
    [
        (1, 128 * K, 0.25, 1.63),
        (1, 224 * K, 0.5, 1.48),
        (1, 224 * K, 0.33, 1.78),
        (1, 224 * K, 0.25, 1.96),
        (1, 224 * K, 0.2, 2.09),
        (2, 224 * K, 0.25, 2.45),
        (4, 224 * K, 0.25, 2.96),
        (8, 224 * K, 0.2, 4.00),
    ],
)
def test_known_ceilings(requests: int, tokens: int, keep_ratio: float, allowed: float) -> None:
    assert round(ceiling(requests * tokens, keep_ratio), 2) == allowed


def test_bytes_of_the_shape() -> None:
    assert round(shapes.parameter_bytes() / 1e9, 2) == 16.06
    assert round(shapes.kv_bytes_per_token() * 224 * K / 1e9, 2) == 30.06


def test_nothing_to_gain_without_tokens_or_with_every_row() -> None:
    assert ceiling(0, 0.25) == 1
    assert ceiling(1 << 20, 1.0) == 1
    assert ceiling(1 << 40, 0.25) == pytest.approx(4, abs=1e-3)


def test_a_case_is_judged_against_its_ceiling() -> None:
    row = {"policy": "0.25", "batch": 1, "tokens": 128 * K, "step_seconds": 0.005}
    told = judge(row, {"step_seconds": 0.0075})
    assert told["ratio"] == pytest.approx(1.5)
    assert told["percent_of_ceiling"] == pytest.approx(150 / told["ceiling"])
    assert told["ceiling_without_embedding"] > told["ceiling"], "fewer weights leave KV a larger part"
