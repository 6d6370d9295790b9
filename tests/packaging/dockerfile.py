"""Reads the files in `docker/` as far as the tests need it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lockfile import ROOT

HADOLINT = Path(sys.executable).with_name("hadolint")


@dataclass(frozen=True)
class Instruction:
    """One line of a Dockerfile: its keyword and what follows."""

    word: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    """The instructions in order, comments left out and continued lines joined."""
    kept = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(kept).replace("\\\n", " ")
    parts = [line.split(maxsplit=1) for line in joined.splitlines()]
    return [Instruction(part[0].upper(), part[1] if len(part) > 1 else "") for part in parts]


def rests(text: str, word: str) -> list[str]:
    """What follows each instruction of this word."""
    return [instruction.rest for instruction in instructions(text) if instruction.word == word]


def copies(text: str) -> list[tuple[list[str], str]]:
    """Sources and target of every COPY from the build context."""
    found = []
    for rest in rests(text, "COPY"):
        if "--from=" not in rest:
            *sources, target = shlex.split(rest)
            found.append((sources, target))
    return found


def wheel_step(text: str) -> list[str]:
    """The words of the RUN that makes the wheel, from `python3` up to where another command follows."""
    (step,) = [rest for rest in rests(text, "RUN") if " pip wheel " in rest]
    words = shlex.split(step.split("&&")[0])
    return words[words.index("python3") :]


def bring(text: str, folder: Path) -> None:
    """Puts into `folder`, which stands for WORKDIR, exactly what the COPY lines bring there."""
    for sources, target in copies(text):
        several = len(sources) > 1 or target.endswith("/")
        for source in sources:
            origin, place = ROOT / source, folder / target
            if origin.is_dir():
                shutil.copytree(origin, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
                continue
            place = place / origin.name if several else place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, place)


def faults(text: str, tracked: set[str]) -> list[str]:
    """What is wrong with a Dockerfile of a context whose files are `tracked`: hadolint's lines, and what it cannot
    know."""
    done = subprocess.run([HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True, timeout=60)
    found = done.stdout.splitlines()
    found += [
        f"RUN {rest} lacks --no-deps." for rest in rests(text, "RUN") if "pip " in rest and "--no-deps" not in rest
    ]
    for sources, _ in copies(text):
        for source in sources:
            if not any(name == source or name.startswith(source.rstrip("/") + "/") for name in tracked):
                found.append(f"COPY {source} is not in git.")
    return found
