"""The language of the model that the servers serve, loaded once."""

from __future__ import annotations

import pytest

from benchmarks.launch import RECALL
from benchmarks.recall import Language


@pytest.fixture(scope="session")
def language() -> Language:
    return Language.load(RECALL)
