"""Quantised weights behind a real server: as plain SGLang serves them where nothing is compressed, and recall else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.weights.compare import CASES, DEFAULT, checkpoint, measured

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="SGLang serves quantised weights on GPUs, and on CPUs with AMX"
    ),
]


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if each in DEFAULT else pytest.mark.slow) for each in CASES]
)
def test_weights_of_a_format_are_served_as_by_plain_sglang(name: str, tmp_path: Path) -> None:
    if CASES[name][1].get("load_format") == "bitsandbytes":
        pytest.importorskip("bitsandbytes")
    row = measured(checkpoint(name, tmp_path), CASES[name][1], requests=20, documents=8)
    assert row["firm_identical"] == row["firm"] > 10, row["different"]
    assert row["compressed_meanwhile"] == 0 < row["compressed_requests"]
    assert row["recall_plain"]["right"] > 0.9 * row["recall_plain"]["total"]
    assert row["recall_ours"]["right"] >= 0.99 * row["recall_plain"]["right"]
    assert row["integrity"] == "ok"
