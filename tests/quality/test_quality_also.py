"""Folders measured apart make one report, and are only read."""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path

import pytest
from fake_quality_server import FakePolicyServer, serving

from benchmarks.quality.__main__ import main
from benchmarks.quality.store import Store, read
from benchmarks.recall import Language
from hetero_sglang.errors import HeteroError

SMALL = ["--reduced", "--lengths", "2048", "--no-plots", "--tasks"]


def measure(language: Language, out: Path, policy: str, *words: str) -> int:
    """How many prompts a run of one cell sent."""
    with serving(FakePolicyServer(language)) as fake:
        ratio = [] if policy == "full" else ["--ratios", "0.5"]
        command = [*SMALL, "needle", "names", "--policies", policy, *ratio, *words]
        assert main([*command, "--out", str(out), "--url", fake.url]) == 0
        return len(fake.prompts)


def test_runs_of_several_machines_make_one_report(
    language: Language, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full, quest, merged = tmp_path / "full", tmp_path / "quest", tmp_path / "merged"
    assert measure(language, full, "full") and measure(language, quest, "quest")
    before = [{path: path.read_bytes() for path in folder.iterdir()} for folder in (full, quest)]
    capsys.readouterr()
    command = [*SMALL, "needle", "--policies", "full", "quest", "--ratios", "0.5", "--report", "--out", str(merged)]
    assert main([*command, "--also", str(full), str(quest)]) == 0
    shown = capsys.readouterr().out
    assert f"{full}: 3 of 4 samples are of this matrix\n{quest}: 3 of 4 samples are of this matrix\n" in shown
    cells = json.loads((merged / "aggregate.json").read_text())["cells"]
    assert [(cell["policy"], cell["samples"], cell["of_full"]) for cell in cells] == [("full", 3, 1), ("quest", 3, 1)]
    assert "| quest | 100.0% (best) |" in (merged / "report.md").read_text()
    assert before == [{path: path.read_bytes() for path in folder.iterdir()} for folder in (full, quest)]
    assert (merged / "samples.jsonl").read_bytes() == b""


def test_what_another_folder_has_is_not_measured_again(language: Language, tmp_path: Path) -> None:
    part, rest = tmp_path / "part", tmp_path / "rest"
    every = measure(language, tmp_path / "whole", "quest")
    some = measure(language, part, "quest", "--tasks", "needle")
    assert 0 < some < every
    assert measure(language, rest, "quest", "--also", str(part)) == every - some
    assert len(read(rest)) + len(read(part)) == len(read(tmp_path / "whole"))
    assert measure(language, tmp_path / "last", "quest", "--also", str(part), str(rest)) == 0


def test_of_two_records_the_folders_own_and_then_the_first_named_counts(language: Language, tmp_path: Path) -> None:
    first, second, own = (tmp_path / name for name in ("first", "second", "own"))
    measure(language, first, "quest")
    for folder, score, samples in ((second, 0.5, 4), (own, 0.25, 1)):
        lines = [json.dumps({**record, "score": score}) + "\n" for record in read(first).values()]
        folder.mkdir()
        (folder / "samples.jsonl").write_text("".join(lines[:samples]))
    assert measure(language, own, "quest", "--also", str(first), str(second)) == 0
    rows = json.loads((own / "aggregate.json").read_text())["rows"]
    assert {row["task"]: row["score"] for row in rows} == {"needle": (0.25 + 1 + 1) / 3, "names": 1.0}


def test_a_folder_may_be_read_while_a_run_writes_there(tmp_path: Path) -> None:
    running = Store(tmp_path)
    running.add("a", {})
    with (tmp_path / "samples.jsonl").open("ab") as file:
        file.write(b'{"key": "b", "sco')
    assert list(read(tmp_path)) == ["a"]
    assert (tmp_path / "samples.jsonl").read_bytes().endswith(b'"sco')


def test_packed_samples_count_as_those_of_the_folder(language: Language, tmp_path: Path) -> None:
    measure(language, tmp_path, "quest")
    plain = tmp_path / "samples.jsonl"
    whole = read(tmp_path)
    (tmp_path / "samples.jsonl.xz").write_bytes(lzma.compress(plain.read_bytes()))
    plain.unlink()
    assert read(tmp_path) == whole
    assert measure(language, tmp_path, "quest") == 0
    assert plain.read_bytes() == b""
    assert read(tmp_path) == whole
    (tmp_path / "samples.jsonl.xz").write_bytes(b"nonsense")
    with pytest.raises(HeteroError, match=r"samples\.jsonl\.xz is damaged"):
        read(tmp_path)


@pytest.mark.parametrize(
    "line, said", [(None, "No such file"), ("nonsense\n", "Line 1 of .* is no sample")], ids=["missing", "nonsense"]
)
def test_a_folder_that_cannot_be_read_is_named(
    line: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if line is not None:
        (tmp_path / "samples.jsonl").write_text(line)
    command = [*SMALL, "needle", "--policies", "full", "--list", "--out", str(tmp_path / "out")]
    assert main([*command, "--also", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", shown) and re.search(said, shown) and str(tmp_path) in shown
    assert not (tmp_path / "out").exists()
