"""`hetero-sglang patch`: all files or none, back to the byte, and nothing done to a tree that it does not know."""

from __future__ import annotations

import difflib
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lockfile import ROOT
from patch_hashes import render

from hetero_sglang import cli
from hetero_sglang.errors import HeteroError
from hetero_sglang.patching import series, unified_diff
from hetero_sglang.patching.command import installed
from hetero_sglang.patching.tree import BACKUP, MANIFEST, State, Tree
from hetero_sglang.sglang.version import TESTED, release

RELEASE = release()  # whose source is at hand

IMPORTING = """
import os, sys
sys.modules["hetero_sglang"] = None
os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
import sglang
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.server_args import ServerArgs
print("HERE", sglang.__file__, hasattr(TokenToKVPoolAllocator.free, "__wrapped__"), ServerArgs.__qualname__)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with the files that the patches touch; one may not be written to, one is a link."""
    for path, pair in series.hashes(RELEASE).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if pair.before:
            shutil.copy2(installed() / path, tmp_path / path)
    (tmp_path / "sglang/srt/server_args.py").chmod(0o440)
    elsewhere = tmp_path / "elsewhere.py"
    (tmp_path / "sglang/srt/platforms/__init__.py").rename(elsewhere)
    (tmp_path / "sglang/srt/platforms/__init__.py").symlink_to(elsewhere)
    return tmp_path


def snapshot(root: Path) -> dict[str, tuple[bytes, int, float, bool]]:
    """Every file's bytes, mode and time."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime, path.is_symlink())
        for path in files
    }


def patch(capsys: pytest.CaptureFixture[str], what: str, root: Path) -> tuple[int, str]:
    """The command's exit code and its one sentence."""
    code = cli.main(["patch", what, str(root)])
    said = "".join(capsys.readouterr())
    assert said.count("\n") == 1 and said.endswith(".\n")
    return code, said


@pytest.mark.parametrize("version", TESTED)
def test_the_hashes_are_those_of_the_patches(version: str) -> None:
    known = (series.folder(version) / series.HASHES).read_text()
    assert known == render(version), "run `python tests/packaging/patch_hashes.py`"


@pytest.mark.parametrize("version", TESTED)
def test_a_patch_begins_with_its_reason_in_two_lines(version: str) -> None:
    for path in series.folder(version).glob("*.patch"):
        first, second, third, *_ = path.read_text().split("\n")
        assert first and second.endswith(".") and not third, path.name


def test_reverted_files_are_what_they_were(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(root)
    assert patch(capsys, "check", root) == (0, f"{root} is SGLang {RELEASE}, as released.\n")
    assert patch(capsys, "apply", root)[0] == 0
    for path, content in series.patched(installed(), RELEASE).items():
        assert (root / path).read_bytes() == content
    assert (root / "sglang/srt/server_args.py").stat().st_mode == before["sglang/srt/server_args.py"][1]
    assert "patched, with backups" in patch(capsys, "check", root)[1]
    assert patch(capsys, "revert", root)[0] == 0
    assert snapshot(root) == before


def patched(root: Path) -> None:
    Tree(root).apply()


def unkept(root: Path) -> None:
    for path, content in series.patched(installed(), RELEASE).items():
        (root / path).unlink(missing_ok=True)
        (root / path).write_bytes(content)


def edited(root: Path) -> None:
    with (root / "sglang/srt/managers/scheduler.py").open("a") as file:
        file.write("# mine\n")


def missing(root: Path) -> None:
    (root / "sglang/srt/managers/scheduler.py").unlink()


def patched_and_edited(root: Path) -> None:
    patched(root)
    edited(root)


def in_the_way(root: Path) -> None:
    (root / "sglang/srt/hetero.py").write_text("")


def half(root: Path) -> None:
    path = "sglang/srt/managers/scheduler.py"
    (root / path).write_bytes(series.patched(installed(), RELEASE)[path])


def without_a_backup(root: Path) -> None:
    patched(root)
    (root / f"sglang/srt/managers/scheduler.py{BACKUP}").write_text("lost")


def odd_manifest(root: Path) -> None:
    patched(root)
    (root / MANIFEST).write_text('{"../outside": [null, "0"]}')


def empty(root: Path) -> None:
    shutil.rmtree(root / "sglang")


@pytest.mark.parametrize(
    ("make", "what", "words"),
    [
        (patched, "apply", "patched already; `hetero-sglang patch revert`"),
        (unkept, "apply", "patched already, without backups"),
        (unkept, "revert", "patched already, without backups"),
        (edited, "check", "1 files .*scheduler.py.*install SGLang [0-9.]+ anew and"),
        (edited, "apply", "1 files .*scheduler.py"),
        (missing, "apply", "1 files .*scheduler.py"),
        (in_the_way, "apply", "1 files .*hetero.py"),
        (half, "apply", "1 files .*scheduler.py"),
        (patched_and_edited, "check", "1 files .*scheduler.py.*delete sglang/hetero-patches.json"),
        (patched_and_edited, "revert", "1 files .*scheduler.py"),
        (without_a_backup, "revert", "backup of .*scheduler.py is not what it was"),
        (odd_manifest, "check", "no two SHA-256 for '../outside'"),
        (odd_manifest, "revert", "no two SHA-256 for '../outside'"),
        (lambda root: None, "revert", "nothing to revert"),
        (empty, "check", "holds no package sglang"),
    ],
)
def test_what_it_does_not_know_is_left_alone_with_a_sentence(
    make: Callable[[Path], None], what: str, words: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(root)
    before = snapshot(root)
    code, said = patch(capsys, what, root)
    assert code == 2 and snapshot(root) == before
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(said)


class Ended(BaseException):
    """Stands for what leaves a process no time: a signal, a power cut."""


def ends_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """From the `step`th change of a name on nothing happens any more, the clearing up included."""
    names: list[str] = []

    def stopping(change: Callable[..., None]) -> Callable[..., None]:
        def counted(*args: object, **kwargs: object) -> None:
            names.append("")
            if len(names) > step:
                raise Ended
            change(*args, **kwargs)

        return counted

    monkeypatch.setattr(os, "replace", stopping(os.replace))
    monkeypatch.setattr(Path, "unlink", stopping(Path.unlink))


@pytest.mark.parametrize("what", ["apply", "revert"])
def test_whatever_interrupts_it_revert_mends_it(what: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, tree = snapshot(root), Tree(root)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # a hundred times 17 files would be slow
    for step in range(200):
        if what == "revert":
            tree.apply()
        with monkeypatch.context() as context:
            ends_at(context, step)
            try:
                getattr(tree, what)()
                break
            except Ended:
                pass
        for path, pair in series.hashes(RELEASE).items():  # no file is half written
            if (root / path).exists():
                assert series.digest((root / path).read_bytes()) in pair
        state, others = tree.state()
        assert state in (State.PRISTINE, State.PATCHED, State.INTERRUPTED) and not others
        if state is State.INTERRUPTED:
            with pytest.raises(HeteroError, match="interrupted run; `hetero-sglang patch revert` mends it"):
                tree.apply()
        if state is State.PRISTINE:
            tree.apply()
        tree.revert()
        assert snapshot(root) == before
    assert step > 40  # and it was interrupted everywhere


def test_an_apply_that_fails_undoes_itself(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, replace = snapshot(root), os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "scheduler.py" and not source.name.endswith(BACKUP):
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    code, said = patch(capsys, "apply", root)
    assert code == 2 and "scheduler.py cannot be written (No space left on device); nothing was changed" in said
    assert snapshot(root) == before


def test_a_revert_that_fails_can_be_done_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(root)
    Tree(root).apply()

    def refused(source: Path, target: Path) -> None:
        raise OSError(1, "Operation not permitted", str(target))

    with monkeypatch.context() as context:
        context.setattr(os, "replace", refused)
        code, said = patch(capsys, "revert", root)
    assert code == 2 and "cannot be put back (Operation not permitted)" in said
    assert patch(capsys, "revert", root)[0] == 0 and snapshot(root) == before


def test_without_hetero_sglang_nothing_of_sglang_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tree(root).apply()
    monkeypatch.setitem(sys.modules, "hetero_sglang", None)
    found = runpy.run_path(str(root / "sglang/srt/hetero.py"))
    assert found["seam"](patched) is found["seam"](patched, "a.module") is patched
    assert found["arguments"](Tree) is Tree and found["choose_engine"]() is None


@pytest.mark.slow
def test_without_hetero_sglang_patched_source_can_be_imported(tmp_path: Path) -> None:
    shutil.copytree(installed() / "sglang", tmp_path / "sglang", symlinks=True)
    Tree(tmp_path).apply()
    command = [sys.executable, "-c", IMPORTING]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("HERE")] or [done.stderr]
    assert line == f"HERE {tmp_path}/sglang/__init__.py False ServerArgs"


FIRST = ("sglang.srt.server_args", "hetero_sglang.sglang.args", "hetero_sglang.sglang.asked")


@pytest.mark.slow
def test_whatever_is_imported_first_patched_source_has_our_arguments(tmp_path: Path) -> None:
    shutil.copytree(installed() / "sglang", tmp_path / "sglang", symlinks=True)
    Tree(tmp_path).apply()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "SGLANG_USE_CPU_ENGINE": "1"}
    for first in FIRST:
        code = f"import {first}, {', '.join(FIRST)}; print(sglang.srt.server_args.ServerArgs.__module__)"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.stdout.split()[-1:] == ["hetero_sglang.sglang.args"], done.stderr


LINES = st.lists(st.sampled_from(["a\n", "b\n", "\n", "-c\n", "--- d\n", "+\x0ce\n"]), max_size=20)


@given(LINES, LINES, st.integers(0, 3))
def test_a_diff_makes_the_one_text_of_the_other(old: list[str], new: list[str], context: int) -> None:
    text = "".join(difflib.unified_diff(old, new, "a/f", "b/f", n=context))
    made = "".join(old)
    for diff in unified_diff.parse(f"Why.\nAnd how.\n\n{text}"):
        made = unified_diff.apply(diff, made)
    assert made == "".join(new)


DIFF = "--- a/f\n+++ b/f\n@@ -2,2 +2,2 @@\n b\n-c\n+C\n"


@pytest.mark.parametrize("content", ["a\nb\nd\n", "b\nc\n", "a\nb\n", "a\nb\nc", "\na\nb\nc\n", "", None])
def test_a_diff_whose_place_is_not_exactly_there_is_refused(content: str | None) -> None:
    (diff,) = unified_diff.parse(DIFF)
    assert unified_diff.apply(diff, "a\nb\nc\nd\n") == "a\nb\nC\nd\n"
    with pytest.raises(HeteroError, match="^f is "):
        unified_diff.apply(diff, content)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a/f", "a/../f"),
        ("a/f", "/f"),
        ("b/f", "b/g"),
        ("+++", "***"),
        ("2,2 @@", "2,3 @@"),
        ("2,2 +", "2,1 +"),
        ("@@ -2", "@@ -x"),
        (" b\n", "b\n"),
        ("+C\n", "+C\n+D\n"),
        ("+C\n", ""),
    ],
)
def test_a_malformed_diff_is_refused(old: str, new: str) -> None:
    assert old in DIFF
    with pytest.raises(HeteroError, match="patch"):
        unified_diff.parse(DIFF.replace(old, new))
