"""Head profiles that servers made for themselves, in the user's cache folder."""

import os
from pathlib import Path

from hetero_sglang.profile.fingerprint import fingerprint

RECIPE = 3  # counts up when calibration finds others in the same model, so that what earlier ones made is not read


def folder() -> Path:
    """Where they are (XDG base directories); it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hetero_sglang" / "profiles"


def place(model: Path) -> Path:
    """Where the one of the checkpoint in this folder is, or will be. Raises HeteroError as `fingerprint` does."""
    return folder() / f"{fingerprint(model).removeprefix('sha256:')[:32]}-{RECIPE}.json"


def made() -> list[Path]:
    """All of them, also those of earlier recipes."""
    return sorted(folder().glob("*.json"))
