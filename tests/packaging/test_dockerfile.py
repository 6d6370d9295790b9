"""`docker build` without Docker: hadolint reads its lines, its `pip wheel` step runs on what it copies, and the server
starts where there is no more than in the image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from dockerfile import bring, faults, rests, wheel_step
from lockfile import FIRST, ROOT

from benchmarks.launch import RECALL, Server

TEXTS = {path.name: path.read_text() for path in sorted((ROOT / "docker").glob("Dockerfile*"))}
CPU = TEXTS["Dockerfile.cpu"]
IN_SLIM = ("sh", "env", "ls", "uname", "cat", "id", "lscpu", "hostname")  # of what Debian has everywhere: no compiler


def tracked() -> set[str]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def build(text: str, folder: Path) -> tuple[subprocess.CompletedProcess[str], list[Path]]:
    """Runs the wheel step on what the COPY lines bring; hatchling comes from this environment, not the network."""
    bring(text, folder)
    _, *words = wheel_step(text)
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


@pytest.mark.parametrize("name", TEXTS)
def test_the_wheel_of_the_image_holds_the_code_what_is_shipped_with_it_and_the_licence(
    name: str, tmp_path: Path
) -> None:
    text = TEXTS[name]
    done, wheels = build(text, tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels
    assert lacks(wheel) == set()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    command = [sys.executable, "-m", "hetero_sglang.cli", "patch", "check"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    checked = subprocess.run(
        command, cwd=tmp_path / "installed", env=environment, capture_output=True, text=True, timeout=300
    )
    assert checked.returncode == 0, checked.stderr  # the patches are found there
    copied = [rest.split()[1] for rest in rests(text, "COPY") if "--from=" in rest]
    assert f"{rests(text, 'WORKDIR')[0]}/{wheel.parent.relative_to(tmp_path)}" in copied


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
    assert CPU.count(lost) == 1
    done, wheels = build(CPU.replace(lost, ""), tmp_path)
    assert done.returncode != 0 or lacks(wheels[0])


@pytest.mark.parametrize("name", TEXTS)
def test_a_dockerfile_has_no_fault(name: str) -> None:
    assert faults(TEXTS[name], tracked()) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("slim-bookworm AS", "AS", "in git"),
        ("3.11-slim-bookworm AS", "latest AS", "DL3007"),
        ("assets/recall-8m/hetero_profile.json", "assets/absent.json", "is not in git"),
        ("wheel --no-cache-dir --no-deps", "wheel --no-cache-dir", "lacks --no-deps"),
        ("--from=build /src", "--from=built /src", "DL3022"),
        ("WORKDIR /src", "WORKDIR src", "DL3000"),
        ("README.md LICENSE ./", "README.md LICENSE there", "DL3021"),
        ("install --no-cache-dir", "install", "DL3042"),
        ('ENTRYPOINT ["python3", ', "ENTRYPOINT python3 ", "DL3025"),
    ],
)
def test_faults_are_found(old: str, new: str, words: str) -> None:
    assert old in CPU
    found = faults(CPU.replace(old, new), tracked() - {"requirements.lock"})
    assert any(words in sentence for sentence in found), found


def test_the_gpu_image_is_of_the_sglang_that_is_measured_on_gpus() -> None:
    assert {rest.split()[0] for rest in rests(TEXTS["Dockerfile"], "FROM")} == {f"lmsysorg/sglang:v{FIRST}"}


def test_the_cpu_image_installs_as_make_does() -> None:
    """So that `make test`, which has run in that environment, has run its commands."""
    make = (ROOT / "Makefile").read_text()
    (install,) = [rest for rest in rests(CPU, "RUN") if "requirements.lock" in rest]
    words = install.split()
    assert words[-2:] == ["-r", "requirements.lock"] and "--no-deps" in words
    assert "install --no-deps --no-compile -r $(LOCK)" in make and "LOCK := requirements$(OTHER).lock" in make


def test_the_cpu_image_s_server_starts_without_what_the_image_lacks(tmp_path: Path) -> None:
    """Its ENTRYPOINT's words, in an environment that has no compiler and no home yet."""
    for name in IN_SLIM:
        os.symlink(shutil.which(name) or pytest.skip(f"{name} is not here"), tmp_path / name)
    python, *words = json.loads(rests(CPU, "ENTRYPOINT")[-1])
    assert (python, words[:2]) == ("python3", ["-m", "sglang.launch_server"])
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert options == {"--host": "0.0.0.0", "--port": "30000"}  # the test's server has a free port
    server = Server(model=RECALL, kv_policy="heterocache", host="0.0.0.0")
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "OMP_WAIT_POLICY") if name in os.environ}
    server.env = {**kept, "PATH": str(tmp_path), "HOME": str(tmp_path / "home")}
    with server:
        assert server.generate([5, 6, 7, 8], 4)["output_ids"]
