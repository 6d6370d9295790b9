"""Reads `docker/Dockerfile` as far as the tests need it."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from lockfile import ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"
WORDS = {"FROM", "WORKDIR", "COPY", "RUN", "ENTRYPOINT"}


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


def copies(text: str) -> list[tuple[list[str], str]]:
    """Sources and target of every COPY from the build context."""
    found = []
    for instruction in instructions(text):
        if instruction.word == "COPY" and "--from=" not in instruction.rest:
            *sources, target = shlex.split(instruction.rest)
            found.append((sources, target))
    return found


def wheel_step(text: str) -> list[str]:
    """The words of the RUN that makes the wheel, up to where another command follows."""
    (step,) = [i.rest for i in instructions(text) if i.word == "RUN" and " pip wheel " in i.rest]
    return shlex.split(step.split("&&")[0])


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
    """What is wrong with a Dockerfile of a context whose files are `tracked`, a sentence each."""
    found, stages, start = [], set(), None
    for instruction in instructions(text):
        word, rest = instruction.word, instruction.rest
        words = shlex.split(rest)
        if word not in WORDS:
            found.append(f"{word} is no instruction that is used here.")
        elif word == "FROM":
            image, *name = words
            tag = image.rpartition("/")[2].partition(":")[2]
            if image not in stages and tag in ("", "latest"):
                found.append(f"FROM {image} names no version.")
            if len(name) == 2 and name[0].upper() == "AS":
                stages.add(name[1])
            start = None
        elif word == "WORKDIR" and not rest.startswith("/"):
            found.append(f"WORKDIR {rest} is relative.")
        elif word == "RUN" and "pip " in rest:
            found += [f"RUN {rest} lacks {flag}." for flag in ("--no-cache-dir", "--no-deps") if flag not in rest]
        elif word == "ENTRYPOINT":
            start = rest
        elif word == "COPY" and "--from=" in rest:
            stage = words[0].removeprefix("--from=")
            if stage not in stages:
                found.append(f"COPY --from={stage} names no earlier stage.")
    for sources, target in copies(text):
        if len(sources) > 1 and not target.endswith("/"):
            found.append(f"COPY of several files needs a folder, not {target}.")
        for source in sources:
            if not any(name == source or name.startswith(source.rstrip("/") + "/") for name in tracked):
                found.append(f"COPY {source} is not in git.")
    if start is None or not start.startswith("["):
        found.append("the last stage has no ENTRYPOINT in exec form.")
    return found
