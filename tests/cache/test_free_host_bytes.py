"""Free host memory is what the machine has, or what a cgroup still allows."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from hetero_sglang.cache.limits import free_host_bytes

MB = 1 << 20


def make_group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.fixture
def cgroups(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "cgroup", tmp_path / "membership"


def test_without_cgroups_it_is_what_the_machine_has(
    cgroups: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"available": 12345}))
    assert free_host_bytes(*cgroups) == 12345


@pytest.mark.parametrize("tight", ["own", "ancestor"])
def test_the_tightest_group_on_the_way_up_counts(cgroups: tuple[Path, Path], tight: str) -> None:
    root, membership = cgroups
    membership.write_text("0::/a/b\n")
    limits = {"own": ("90", "max"), "ancestor": ("max", "90")}[tight]
    for folder, limit in zip((root / "a/b", root / "a"), limits, strict=True):
        limit = str(int(limit) * MB) if limit != "max" else limit
        make_group(folder, memory__max=limit, memory__current=50 * MB)
    assert free_host_bytes(root, membership) == 40 * MB


def test_idle_file_pages_are_free(cgroups: tuple[Path, Path]) -> None:
    root, membership = cgroups
    membership.write_text("0::/\n")
    make_group(root, memory__max=90 * MB, memory__current=80 * MB, memory__stat=f"anon 5\ninactive_file {30 * MB}")
    assert free_host_bytes(root, membership) == 40 * MB


def test_version_one_limits_count(cgroups: tuple[Path, Path]) -> None:
    root, membership = cgroups
    membership.write_text("9:cpu,cpuacct:/x\n4:memory:/docker/7\n0::/\n")
    make_group(
        root / "memory/docker/7",
        memory__limit_in_bytes=70 * MB,
        memory__usage_in_bytes=60 * MB,
        memory__stat=f"inactive_file 1\ntotal_inactive_file {2 * MB}",
    )
    assert free_host_bytes(root, membership) == 12 * MB


def test_an_overdrawn_group_leaves_nothing(cgroups: tuple[Path, Path]) -> None:
    root, membership = cgroups
    membership.write_text("0::/\n")
    make_group(root, memory__max=5 * MB, memory__current=6 * MB)
    assert free_host_bytes(root, membership) == 0


def test_this_machine_has_some() -> None:
    assert 0 < free_host_bytes() <= psutil.virtual_memory().total
