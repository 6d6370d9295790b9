"""Models and profiles that the profile tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECALL = ROOT / "assets" / "recall-8m"


@pytest.fixture(scope="session")
def recall_model() -> Path:
    return RECALL


@pytest.fixture(scope="session")
def published() -> dict[str, Path]:
    """The reference's head files by the model's first word."""
    folder = Path(os.environ.get("HETERO_SHARED", ROOT.parent / "shared")) / "profiles"
    files = sorted(folder.glob("Head_Analysis_*.json"))
    if len(files) < 3:
        pytest.skip("the reference's published profiles are not here (HETERO_SHARED)")
    return {path.name.removeprefix("Head_Analysis_").split("-")[0]: path for path in files}
