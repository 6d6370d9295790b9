from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from lockfile import LOCK, LOCKS, closure, declared, locked, render
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hetero_sglang.sglang.version import TESTED

CORE = ("sglang", "sglang-kernel", "torch", "triton", "transformers", "flashinfer-python", "xgrammar")
on_locked_platform = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or sys.version_info[:2] != (3, 11),
    reason="the lock is of Linux x86_64 with Python 3.11",
)


def unmet(requirement: Requirement, pins: dict[str, str]) -> str | None:
    """What `pins` does wrong by a requirement, if anything."""
    version = pins.get(canonicalize_name(requirement.name))
    if version is None:
        return f"{requirement} is not locked"
    return None if requirement.specifier.contains(version, prereleases=True) else f"{requirement}: {version}"


every_lock = pytest.mark.parametrize("lock", LOCKS.values(), ids=LOCKS)


@every_lock
def test_every_line_is_an_exact_pin_and_no_package_stands_twice(lock: Path) -> None:
    pins = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    assert len(pins) == len(locked(lock))


def test_every_tested_sglang_has_a_lock_and_no_other_may_be_installed() -> None:
    assert tuple(LOCKS) == TESTED and [locked(lock)["sglang"] for lock in LOCKS.values()] == [*TESTED]
    (wanted,) = (each for each in map(Requirement, declared()["run-time"]) if each.name == "sglang")
    found = [f"0.{minor}.{patch}" for minor in range(4, 7) for patch in range(40)]
    assert tuple(each for each in found if each in wanted.specifier) == TESTED


@pytest.mark.parametrize("line", ["torch>=2.11", "torch @ file:///x.whl", "-e .", "torch==2.11.0 --hash=sha256:0"])
def test_anything_but_an_exact_pin_is_refused(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "requirements.lock"
    path.write_text(line + "\n")
    monkeypatch.setattr("lockfile.LOCK", path)
    with pytest.raises(ValueError, match="no exact pin"):
        locked()


@every_lock
@pytest.mark.parametrize("group", declared())
def test_every_declared_dependency_is_locked_at_a_version_it_allows(group: str, lock: Path) -> None:
    pins = locked(lock)
    assert not list(filter(None, (unmet(Requirement(text), pins) for text in declared()[group])))


@on_locked_platform
def test_every_dependency_of_a_locked_package_is_locked_at_a_version_it_allows() -> None:
    pins, wrong = locked(), []
    for name in pins:
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wrong.append(unmet(requirement, pins))
    assert not list(filter(None, wrong))


def test_the_running_core_packages_are_the_locked_ones() -> None:
    pins = locked()
    running = {name: distribution(name).version.split("+")[0] for name in CORE}
    assert running == {name: pins[name] for name in CORE}


@on_locked_platform
def test_the_lock_is_what_make_lock_writes_here() -> None:
    try:
        assert LOCK.read_text() == render()
    except PackageNotFoundError as error:
        pytest.fail(f"{error.name} is declared but not installed")


def test_closure_follows_extras_and_markers() -> None:
    names = closure(["pytest"])
    assert "pluggy" in names and "argcomplete" not in names  # the latter belongs to an extra nobody asked for
