"""Where measurements are kept: one JSON per run, with the commit and the machine it was taken on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"


def run_information() -> dict[str, Any]:
    """Commit, date, processor or card, and the versions that matter."""
    import torch

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=FOLDER.parent)
        return done.stdout.strip()

    return {
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else ""),
        "date": time.strftime("%Y-%m-%d"),
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def save(name: str, result: dict[str, Any]) -> Path:
    """Write `results/NAME.json`, whole or not at all."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    write(path, {"run": run_information(), **result})
    return path


def write(path: Path, result: dict[str, Any]) -> None:
    """JSON, whole or not at all."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(result, indent=1) + "\n")
    scratch.replace(path)


def put(path: Path, row: dict[str, Any]) -> None:
    """Put the row in the file, in the place of an earlier one of its name."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [each for each in rows if each["name"] != row["name"]] + [row]
    write(path, {"rows": rows})


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
