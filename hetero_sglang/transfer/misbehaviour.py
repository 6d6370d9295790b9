"""What a retrieval worker gets wrong where a test asks for it (config/development.py)."""

import os
import time

import numpy as np

from hetero_sglang.config import development

_SLOW_S = 0.5
_LATE_S = 12.0
_FOR_GOOD_S = 1e6


def before_reading() -> None:
    """A stalled worker stops here."""
    if "worker-stalled" in development.faults():
        time.sleep(_FOR_GOOD_S)


def before_answering() -> None:
    """One that dies ends; a slow or late one takes its time."""
    faults = development.faults()
    if "worker-dies" in faults:
        os._exit(1)
    if "worker-slow" in faults:
        time.sleep(_SLOW_S)
    if "worker-late" in faults:
        time.sleep(_LATE_S)


def told(positions: np.ndarray) -> np.ndarray:
    """The positions [n] int32 that an answer names: what was found, or what does not exist."""
    return positions + np.int32(1 << 29) if "worker-lies" in development.faults() else positions
