from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from lockfile import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Stands for the interpreter of the system and of the environment: notes how it was called.
FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in
  *version_info*) exit ${WRONG_VERSION:-0} ;;
  *ensurepip*) exit ${NO_VENV:-0} ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *" -e ."*) exit ${BROKEN_INSTALL:-0} ;;
esac
"""


class Checkout:
    """A copy of what `make` reads, with a fake interpreter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-0.5.23.lock"):
            shutil.copy(ROOT / name, folder / name)
        self.python = folder / "fake-python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)
        self.log = folder / "calls"

    def make(self, *words: str, **env: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """The finished `make` and the interpreter's calls in it."""
        self.log.write_text("")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        done = subprocess.run(
            ["make", *words, f"PYTHON={self.python}"],
            cwd=self.folder,
            env={**clean, "CALLS": str(self.log), **env},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done, self.log.read_text().splitlines()

    def age(self, name: str, seconds: int) -> None:
        """Moves a file's time of change by `seconds` from now."""
        now = max(stamp.stat().st_mtime for stamp in self.folder.glob(".venv*/.installed"))
        os.utime(self.folder / name, (now + seconds, now + seconds))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def installs(calls: list[str]) -> list[str]:
    return [call for call in calls if " install " in call]


CHECK = ["-m ruff check .", "-m ruff format --check .", "-m mypy"]
FAST = "-m pytest tests -m not slow"


@pytest.mark.parametrize("goal, last", [("test", FAST), ("demo", "-m benchmarks.demo")])
def test_first_run_makes_the_environment_then_installs_lock_and_package_then_runs(
    checkout: Checkout, goal: str, last: str
) -> None:
    done, calls = checkout.make(goal)
    assert done.returncode == 0, done.stderr
    venv = calls.index("-m venv .venv")
    lock, package = (calls.index(call) for call in installs(calls))
    assert venv < lock < package < len(calls) - 1
    assert calls[lock].endswith("--no-deps --no-compile -r requirements.lock")
    assert calls[package].endswith("-e .")
    assert calls[-1] == last


@pytest.mark.parametrize(
    "goal, runs", [("test", [*CHECK, FAST]), ("test-all", [*CHECK, "-m pytest tests"]), ("check", CHECK)]
)
def test_second_run_only_checks_and_runs(checkout: Checkout, goal: str, runs: list[str]) -> None:
    checkout.make(goal)
    for name in ("requirements.lock", "pyproject.toml"):
        checkout.age(name, -60)
    assert checkout.make(goal)[1] == runs


@pytest.mark.parametrize("changed", ["requirements.lock", "pyproject.toml"])
def test_a_changed_file_installs_again_into_the_same_environment(checkout: Checkout, changed: str) -> None:
    checkout.make("test")
    checkout.age(changed, 60)
    calls = checkout.make("test")[1]
    assert len(installs(calls)) == 2 and "-m venv .venv" not in calls


def test_a_broken_installation_is_not_taken_for_done(checkout: Checkout) -> None:
    assert checkout.make("test", BROKEN_INSTALL="1")[0].returncode != 0
    done, calls = checkout.make("test")
    assert done.returncode == 0 and len(installs(calls)) == 2


@pytest.mark.parametrize("lack", ["WRONG_VERSION", "NO_VENV"])
def test_a_missing_interpreter_or_venv_module_is_one_sentence_naming_the_package(checkout: Checkout, lack: str) -> None:
    done, calls = checkout.make("test", **{lack: "1"})
    first, *rest = done.stderr.splitlines()
    assert done.returncode != 0 and not installs(calls)
    assert first.endswith(".") and "apt install python3.11-venv" in first
    assert all(line.startswith("make: ***") for line in rest)


def test_bytecode_may_be_written_even_where_the_environment_forbids_it(checkout: Checkout) -> None:
    checkout.python.write_text(FAKE_PYTHON + 'echo "forbidden=[$PYTHONDONTWRITEBYTECODE]" >> "$CALLS"\n')
    _, calls = checkout.make("test", PYTHONDONTWRITEBYTECODE="1")
    assert calls[-1] == "forbidden=[]"


def test_another_sglang_has_an_environment_and_a_lock_of_its_own(checkout: Checkout) -> None:
    done, calls = checkout.make("test", "SGLANG=0.5.23")
    assert done.returncode == 0, done.stderr
    assert "-m venv .venv-0.5.23" in calls and "-m venv .venv" not in calls
    assert installs(calls)[0].endswith("-r requirements-0.5.23.lock") and calls[-1] == FAST
    checkout.age("requirements.lock", 60)
    assert not installs(checkout.make("test", "SGLANG=0.5.23")[1])


def test_an_sglang_without_a_lock_is_refused(checkout: Checkout) -> None:
    done, calls = checkout.make("test", "SGLANG=0.5.20")
    assert done.returncode != 0 and not installs(calls) and "requirements-0.5.20.lock" in done.stderr


def test_the_site_is_built_in_an_environment_of_its_own(checkout: Checkout) -> None:
    done, calls = checkout.make("docs")
    assert done.returncode == 0, done.stderr
    assert "-m venv .venv-docs" in calls and "-m venv .venv" not in calls
    assert calls[-1] == "-m mkdocs build --strict"


def test_ci_is_make_test() -> None:
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    assert run.read_text().splitlines()[-1] == "make test"
