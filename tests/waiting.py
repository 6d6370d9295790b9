"""Waiting for a condition itself, for so long that a busy machine is no failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Held = TypeVar("Held")

PATIENCE_S = 120.0


def wait_for(holds: Callable[[], Held], lacking: str | Callable[[], str], pause_s: float = 0.05) -> Held:
    """What `holds` says once that is true; AssertionError with what was `lacking` where it never is."""
    deadline = time.monotonic() + PATIENCE_S
    while not (held := holds()):
        said = lacking if isinstance(lacking, str) else lacking()
        assert time.monotonic() < deadline, f"after {PATIENCE_S:g} s {said}"
        time.sleep(pause_s)
    return held
