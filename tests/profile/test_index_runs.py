"""The run of a key index is found by playing the lazy rule on decode steps of a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from profile_builders import write_checkpoint

from hetero_sglang.calibration import runs
from hetero_sglang.calibration.checkpoint import Checkpoint, open_checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.index import plan_index
from hetero_sglang.calibration.moments import prefill
from hetero_sglang.profile.index_plan import RUNS, IndexPlan


def document(length: int) -> Document:
    return Document("text", "", tuple(np.random.default_rng(length).integers(3, 2900, length).tolist()))


@pytest.fixture(scope="module")
def model(tmp_path_factory, recall_model: Path) -> Checkpoint:
    return open_checkpoint(write_checkpoint(tmp_path_factory.mktemp("runs") / "tiny", "llama", recall_model), "cpu")


@pytest.fixture(scope="module")
def plan(model) -> IndexPlan:
    return plan_index(prefill(model, [document(400)], lambda tokens: None).all(), ((8, 4), (8, 2)))


def test_who_keeps_more_rows_loses_less_and_who_keeps_all_nothing(model, plan):
    lost = torch.stack([runs._play(model, document(400), plan, rows) for rows in (40, 160, 328)])  # [sizes, runs]
    assert lost.shape == (3, len(RUNS)) and (lost[0] > lost[1]).all() and (lost[1] > lost[2]).all()
    assert (lost[2] < 0.05 * lost[0]).all()  # but for tokens that leave the window


def test_the_least_loss_decides_over_the_longest_texts(model, plan, monkeypatch):
    losses = {4000: [0.2, 0.1, 0.3], 3000: [0.2, 0.25, 0.4]}
    seen = []

    def play(checkpoint: Checkpoint, text: Document, made: IndexPlan, rows: int) -> torch.Tensor:
        seen.append((len(text.tokens), rows))
        return torch.tensor(losses[len(text.tokens)])

    monkeypatch.setattr(runs, "_play", play)
    assert runs.best_run(model, [document(n) for n in (1000, 3000, 4000, 2000)], plan) == 4
    assert seen == [(4000, 152), (3000, 96)]  # the index takes 0.094 of the ratio, sinks and recent tokens 72 rows


def test_texts_too_short_to_tell_give_rows_one_by_one(model, plan, monkeypatch):
    monkeypatch.setattr(runs, "_play", lambda *given: pytest.fail("nothing to learn here"))
    assert runs.best_run(model, [document(n) for n in (30, 400)], plan) == 1
