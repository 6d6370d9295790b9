"""A small checkpoint, and its branches, that tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import write_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def recall_model() -> Path:
    return ROOT / "assets" / "recall-8m"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, recall_model: Path) -> Path:
    """Four layers of random weights."""
    folder = tmp_path_factory.mktemp("exits") / "tiny"
    return write_checkpoint(folder, "llama", recall_model, num_hidden_layers=4)
