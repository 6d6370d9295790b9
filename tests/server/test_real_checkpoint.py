"""SmolLM2-135M-Instruct out of its wheel: a model that works, served with and without the policy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import real_text, results
from benchmarks.launch import Server
from benchmarks.quality.client import Client
from benchmarks.real.smollm2 import build
from hetero_sglang.errors import HeteroError


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Downloaded (98 MB), converted and calibrated: 3 minutes."""
    folder = tmp_path_factory.mktemp("real") / "smollm2"
    try:
        build(folder)
    except HeteroError as error:
        if "pip could not download" in str(error):
            pytest.skip(str(error))
        raise
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_it_continues_real_text_and_does_as_it_is_told(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    words = ["--prompt", "3000", "--steps", "64", "--kinds", "reference", "needle", "--texts", "2"]
    words += ["--server-flags", "--dtype float32", "--no-plot"]
    real_text.main(["--model", str(smollm2), "--policies", "heterocache@0.2", *words, "--name", "t"])
    rows = json.loads(next(tmp_path.glob("t*.json")).read_text())["rows"]
    full, ours = (
        {row["kind"]: row for row in rows if row["policy"] == policy} for policy in ("full", "heterocache@0.2")
    )
    assert full["reference"]["nll"] < 3.0  # 10.8 of a model that knows nothing
    assert abs(ours["reference"]["nll_difference"]) < 0.05 and ours["reference"]["same_first"] > 0.9
    assert full["needle"]["whole"] == 2  # what compressed heads make of more of them is measured by the benchmark
    assert ours["reference"]["counters"]["fetched_rows"] > 0
    with Server(smollm2, kv_policy="heterocache", dtype="float32") as server:
        said, _ = Client(server.url).complete("What is the capital of France? Answer with one word.", 16, chat=True)
    assert "Paris" in said
