"""`docker build` without Docker: its lines are checked, and its `pip wheel` step runs on what it copies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from dockerfile import DOCKERFILE, bring, faults, instructions, wheel_step
from lockfile import ROOT

TEXT = DOCKERFILE.read_text()


def tracked() -> set[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def build(text: str, folder: Path) -> tuple[subprocess.CompletedProcess[str], list[Path]]:
    """Runs the wheel step on what the COPY lines bring; hatchling comes from this environment, not the network."""
    bring(text, folder)
    python, *words = wheel_step(text)
    assert python == "python3"
    command = [sys.executable, *words[:-1], "--no-build-isolation", "--no-index", words[-1]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return done, sorted(folder.rglob("*.whl"))


def lacks(wheel: Path) -> set[str]:
    """What a wheel should hold and does not."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (folder,) = {name.split("/")[0] for name in files if ".dist-info/" in name}
    wanted = {name: (ROOT / name).read_bytes() for name in tracked() if name.startswith("hetero_sglang/")}
    wanted[f"{folder}/licenses/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    wanted["hetero_sglang/profile/shipped/recall-8m.json"] = (
        ROOT / "assets" / "recall-8m" / "hetero_profile.json"
    ).read_bytes()
    for name in tracked():
        if name.startswith("patches/"):
            wanted[f"hetero_sglang/patching/{name}"] = (ROOT / name).read_bytes()
    about = files[f"{folder}/METADATA"].decode()
    lines = {"License-Expression: Apache-2.0", "License-File: LICENSE", "Requires-Dist: torch"}
    return {name for name, content in wanted.items() if files.get(name) != content} | lines - set(about.splitlines())


def test_the_wheel_of_the_image_holds_the_code_what_is_shipped_with_it_and_the_licence(tmp_path: Path) -> None:
    done, wheels = build(TEXT, tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels
    assert lacks(wheel) == set()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    command = [sys.executable, "-m", "hetero_sglang.cli", "patch", "check"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    checked = subprocess.run(
        command, cwd=tmp_path / "installed", env=environment, capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stderr  # the patches are found there
    copied = next(i.rest for i in instructions(TEXT) if i.word == "COPY" and "--from=" in i.rest).split()[1]
    workdir = next(i.rest for i in instructions(TEXT) if i.word == "WORKDIR")
    assert copied == f"{workdir}/{wheel.parent.relative_to(tmp_path)}"


@pytest.mark.parametrize(
    "lost",
    [
        " README.md",
        " LICENSE",
        "COPY assets/recall-8m/hetero_profile.json assets/recall-8m/\n",
        "COPY patches patches\n",
        "COPY hetero_sglang hetero_sglang\n",
    ],
)
def test_without_any_one_of_the_copied_files_there_is_no_such_wheel(tmp_path: Path, lost: str) -> None:
    assert TEXT.count(lost) == 1
    done, wheels = build(TEXT.replace(lost, ""), tmp_path)
    assert done.returncode != 0 or lacks(wheels[0])


def test_the_dockerfile_has_no_fault() -> None:
    assert faults(TEXT, tracked()) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("sglang:v0.5.17 AS", "sglang AS", "names no version"),
        ("sglang:v0.5.17 AS", "sglang:latest AS", "names no version"),
        ("assets/recall-8m/hetero_profile.json", "assets/absent.json", "is not in git"),
        ("--from=build", "--from=built", "no earlier stage"),
        ("WORKDIR /src", "WORKDIR src", "is relative"),
        ("README.md LICENSE ./", "README.md LICENSE there", "needs a folder"),
        ("wheel --no-cache-dir", "wheel", "lacks --no-cache-dir"),
        ('ENTRYPOINT ["python3", ', "ENTRYPOINT python3 ", "exec form"),
        ("WORKDIR /src", "WORKDIRS /src", "no instruction"),
    ],
)
def test_every_fault_is_found(old: str, new: str, words: str) -> None:
    assert old in TEXT
    found = faults(TEXT.replace(old, new), tracked())
    assert any(words in sentence for sentence in found), found


def test_the_image_is_of_the_sglang_that_is_declared() -> None:
    declared = (ROOT / "pyproject.toml").read_text().split('"sglang==')[1].split('"')[0]
    images = {i.rest.split()[0] for i in instructions(TEXT) if i.word == "FROM"}
    assert images == {f"lmsysorg/sglang:v{declared}"}
