"""Energy that the machine's own counters tell."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class Energy:
    """Joules of all GPUs and of the processor packages since `begin`; what has no counter is None."""

    def __init__(self) -> None:
        self.readers: dict[str, Callable[[], float]] = {}
        for name, reader in (("gpu", _gpus), ("processor", _packages)):
            with contextlib.suppress(Exception):  # a driver or a file that is not there, or may not be read
                reader()
                self.readers[name] = reader
        self.begin()

    def begin(self) -> None:
        """Count from now."""
        self.began = time.monotonic()
        self.first = {name: reader() for name, reader in self.readers.items()}

    def spent(self) -> dict[str, float | None]:
        """Joules by part. A processor's counter wraps, within an hour at full load: None then."""
        told: dict[str, float | None] = dict.fromkeys(("gpu", "processor"))
        for name, reader in self.readers.items():
            joules = reader() - self.first[name]
            told[name] = joules if joules >= 0 else None
        return told


def words(joules: float | None, actions: int) -> str:
    """Joules an action, or that they cannot be told."""
    return "not readable" if joules is None else f"{joules / max(1, actions):.2f} J"


def _gpus() -> float:
    """Joules of all GPUs since the driver was loaded."""
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
    if not handles:
        raise RuntimeError("there is no GPU")
    return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(each) for each in handles) / 1000


def _packages() -> float:
    """Joules of the processor packages (RAPL)."""
    found = [path / "energy_uj" for path in POWERCAP.glob("intel-rapl:*") if path.name.count(":") == 1]
    if not found:
        raise RuntimeError("there is no RAPL counter")
    return sum(int(path.read_text()) for path in found) / 1e6
