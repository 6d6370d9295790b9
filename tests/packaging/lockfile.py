"""Reads the lock of the running SGLang, and writes it anew from the running environment (`make lock`)."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FIRST = "0.5.17"  # of which .venv is
LOCKS = {FIRST: ROOT / "requirements.lock", "0.5.23": ROOT / "requirements-0.5.23.lock"}
LOCK = LOCKS[version("sglang")]
HEADER = f"""\
# Every package of the run-time, dev, plot, bench and build environments, as tested: Linux x86_64, Python 3.11.
# Written by `make lock`; do not edit. Install: pip install -r {LOCK.name}
#                                               pip install --no-deps --no-build-isolation -e .
"""


def declared() -> dict[str, list[str]]:
    """The requirements of pyproject.toml by group: run-time, each extra but the site's, build (editable ones too)."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = {"run-time": list(data["project"]["dependencies"]), **data["project"]["optional-dependencies"]}
    del groups["docs"]  # `make docs` has an environment of its own
    groups["build"] = [*data["build-system"]["requires"], "editables"]
    return groups


def locked(lock: Path | None = None) -> dict[str, str]:
    """Version by canonical name, of the running SGLang's lock or another. Raises ValueError for a line that is not
    `name==version`."""
    lock, versions = lock or LOCK, {}
    for line in lock.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._!]+)", line)
        if match is None:
            raise ValueError(f"{lock.name} holds a line that is no exact pin: {line!r}")
        versions[canonicalize_name(match[1])] = match[2]
    return versions


def closure(requirements: list[str]) -> dict[str, str]:
    """Installed version, by canonical name, of each package that `requirements` pull in and of themselves."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(Requirement(text), "") for text in requirements]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            installed = distribution(name)
            found[name] = installed.version.split("+")[0]  # "+cu130" names a build, not a version
            todo += [(Requirement(text), wanted) for text in installed.requires or ()]
    return found


def render() -> str:
    """The lock of the running environment; a package is listed under the first group that needs it."""
    parts, written = [HEADER], set()
    for group, requirements in declared().items():
        pins = {name: version for name, version in closure(requirements).items() if name not in written}
        written |= pins.keys()
        parts.append(f"\n# {group}\n" + "".join(f"{name}=={pins[name]}\n" for name in sorted(pins)))
    return "".join(parts)


if __name__ == "__main__":
    LOCK.write_text(render())
