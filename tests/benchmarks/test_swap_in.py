"""The measurements of what brings rows read the right ones; small, and on the CPU where no GPU is."""

from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks import lazy_layers, swap_in
from hetero_sglang.cache.host_layout import BLOCK

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def host() -> torch.Tensor:
    rows = torch.empty(40, swap_in.HEADS, BLOCK, 2 * swap_in.DIM, dtype=swap_in.DTYPE)
    swap_in.fill(rows)
    return rows.pin_memory() if DEVICE.type == "cuda" else rows


def test_every_rate_is_of_the_right_rows(host: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap_in, "LAYERS", 1)
    monkeypatch.setattr(lazy_layers, "ROUNDS", 1)
    given = argparse.Namespace(programs=[3], prefix_programs=[3], runs=[1, 8], tokens=64, requests=[2], come=72)
    rows = list(swap_in.measure(DEVICE, host, given))
    assert len(rows) == 7 and all(row["right"] for row in rows if row["programs"])
    assert [row["bytes"] for row in rows[:2]] == [2 * 72 * 512] * 2


def test_layers_bring_rows(host: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LAYERS", 1), ("ROUNDS", 1), ("GROUP", 1), ("HIDDEN", 64), ("INNER", 64)):
        monkeypatch.setattr(lazy_layers, name, value)
    rows = list(lazy_layers.measure(DEVICE, host, 2, 512, 8))
    assert [row["what"] for row in rows] == list(lazy_layers.STAGES)
    came = [row["rows_came"] for row in rows]
    assert came[:3] == [0, 0, 0] and 0 < came[4] <= 2 * lazy_layers.HEADS * lazy_layers.COME
