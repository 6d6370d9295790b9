"""SGLang's source as it was released, of every tested version: the installed one's, or its wheel's, unpacked."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest

from hetero_sglang.patching.command import installed
from hetero_sglang.sglang.version import TESTED

CACHE = Path(__file__).parents[1] / "build" / "wheels"
WHEELS = {  # SHA-256 of the wheels for Linux x86_64 and Python 3.11
    "0.5.17": "575e38f5683624ded3b4bb267f637a098e5ed37d13a1d1ff5ea09bd781a04d16",
    "0.5.23": "00b3cd5b265ac76c64185fbb6b95424f324ddd9f428d0306b77bc9db9d859937",
}
assert tuple(WHEELS) == TESTED
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq"]
ONE_WHEEL = ["--no-deps", "--only-binary=:all:", "--python-version", "3.11", "--platform", "manylinux_2_34_x86_64"]


@cache
def source(version: str) -> Path:
    """The folder that holds the package; it is not imported from there. Skips the test where there is no network."""
    if installed_version("sglang") == version:
        return installed()
    place = CACHE / f"sglang-{version}"
    if not place.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            unpack(download(version, Path(made)), Path(made) / "tree")
            (Path(made) / "tree").rename(place)
    return place


def download(version: str, folder: Path) -> Path:
    """The version's wheel, in `folder`. AssertionError for another one than that of WHEELS."""
    done = subprocess.run(
        [*PIP, "download", *ONE_WHEEL, "--dest", str(folder), f"sglang=={version}"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"the wheel of SGLang {version} cannot be had: {done.stderr.strip()[-200:]}")
    (wheel,) = folder.glob("sglang-*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert found == WHEELS[version], f"{wheel.name} has the SHA-256 {found}"
    return wheel


def unpack(wheel: Path, folder: Path) -> None:
    """Its Python files."""
    with zipfile.ZipFile(wheel) as files:
        files.extractall(folder, [name for name in files.namelist() if name.endswith(".py")])
