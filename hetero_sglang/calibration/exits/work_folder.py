"""Where a run keeps what a later one can go on with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.files import write_text

STATES, TRAINING = "states.bin", "training.pt"
_SETTINGS = "settings.json"


class WorkFolder:
    """A folder of our own files, each of which is of the same settings or is not there."""

    def __init__(self, path: Path, read: Sequence[Any], trained: Sequence[Any]) -> None:
        """`read`: what states depend on; `trained`: what training depends on besides. Files of others are removed.

        Raises HeteroError for a folder that cannot be made, and for one that holds something else."""
        self.path = path
        settings = {STATES: _digest(read), TRAINING: _digest([*read, *trained])}
        try:
            path.mkdir(exist_ok=True)
            others = {each.name for each in path.iterdir()} - {STATES, TRAINING, _SETTINGS, f"{TRAINING}.part"}
        except OSError as error:
            raise HeteroError(f"the folder {path} cannot be used: {error.strerror}; choose another.") from None
        if others:
            raise HeteroError(f"the folder {path} holds {min(others)}, which is not ours; choose another `--work`.")
        kept = self._settings()
        for name, digest in settings.items():
            if kept.get(name) != digest:
                (path / name).unlink(missing_ok=True)
        write_text(path / _SETTINGS, json.dumps(settings) + "\n")

    @property
    def states(self) -> Path:
        """File of `States`."""
        return self.path / STATES

    @property
    def training(self) -> Path:
        """File of `Training.save`."""
        return self.path / TRAINING

    def remove(self) -> None:
        """Takes the folder away."""
        shutil.rmtree(self.path)

    def _settings(self) -> dict[str, Any]:
        try:
            found = json.loads((self.path / _SETTINGS).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
