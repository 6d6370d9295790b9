"""What one run of a text tells of the same text anywhere in the context: against runs at shifted positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import write_checkpoint

from hetero_sglang.calibration.checkpoint import Checkpoint, open_checkpoint
from hetero_sglang.calibration.documents import Document
from hetero_sglang.calibration.moments import HeadMoments, Moments
from hetero_sglang.calibration.observe import watched
from hetero_sglang.calibration.positions import anywhere, turns
from hetero_sglang.calibration.reading import read

LENGTH, CONTEXT = 200, 3000
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 512}  # fmt: skip
ROPES = {"plain": {"rope_type": "default", "rope_theta": 1e6}, "yarn": YARN, "llama3": LLAMA3}


@pytest.fixture(scope="module", params=ROPES)
def model(request, tmp_path_factory, recall_model: Path) -> Checkpoint:
    folder = tmp_path_factory.mktemp("positions") / request.param
    return open_checkpoint(write_checkpoint(folder, "llama", recall_model, rope_parameters=ROPES[request.param]), "cpu")


def document(length: int = LENGTH) -> Document:
    return Document("text", "", tuple(np.random.default_rng(3).integers(3, 2900, length).tolist()))


def run_at(model: Checkpoint, shifts: list[int]) -> list[HeadMoments]:
    """Moments of the text run again and again, each time at later positions."""
    moments = Moments(2)
    tokens = torch.tensor([document().tokens])
    with torch.inference_mode(), watched(model.model, lambda layer, q, k, *rest: moments.add(layer, q, k)):
        for shift in shifts:
            model.model(tokens, position_ids=shift + torch.arange(LENGTH)[None], use_cache=False)
    return moments.all()


def test_moments_anywhere_are_those_of_runs_at_shifted_positions(model):
    turned = turns(model, LENGTH, CONTEXT)
    shifts = torch.linspace(0, CONTEXT - LENGTH, len(turned)).round().long().tolist()
    assert shifts[-1] + LENGTH == CONTEXT and max(np.diff(shifts)) <= LENGTH // 4 + 1
    moments = Moments(2)
    read(model, document(), 1, moments)
    found = [anywhere(m, turned) for m in moments.all()]
    for one, other in zip(found, run_at(model, shifts), strict=True):
        for name in ("mean", "covariance", "queries"):
            wanted = getattr(other, name)
            assert np.allclose(getattr(one, name), wanted, atol=2e-4 * np.abs(wanted).max()), name


def test_a_text_as_long_as_the_context_stays_where_it_is(model):
    turned = turns(model, LENGTH, LENGTH - 50)
    assert np.allclose(turned, 1) and len(turned) == 1
