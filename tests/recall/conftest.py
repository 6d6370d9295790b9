"""The language of the recall model in assets/, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from benchmarks.recall import Language

MODEL = Path(__file__).parents[2] / "assets" / "recall-8m"


settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def model_path() -> Path:
    return MODEL


@pytest.fixture(scope="session")
def language() -> Language:
    return Language.load(MODEL)
