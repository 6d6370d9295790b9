"""The command line: lists, runs against a server, goes on, and refuses in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from fake_quality_server import FakePolicyServer, serving

from benchmarks.launch import RECALL
from benchmarks.quality.__main__ import main
from benchmarks.recall import Language

SMALL = ["--reduced", "--tasks", "needle", "names", "--lengths", "2048"]


def test_a_run_leaves_samples_aggregate_report_and_plots(
    language: Language, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = {"kv_policy": "snapkv", "hetero_keep_ratio": 0.5}
    with serving(FakePolicyServer(language, info=info)) as fake:
        command = [*SMALL, "--out", str(tmp_path), "--url", fake.url, "--policies", "snapkv", "--ratios", "0.5"]
        assert main(command) == 0
        sent = len(fake.prompts)
        assert main(command) == 0
        assert len(fake.prompts) == sent
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"samples.jsonl", "aggregate.json", "report.md", "accuracy.png", "needle.png"}
    kept = json.loads((tmp_path / "aggregate.json").read_text())
    assert kept["run"]["commit"]
    [cell] = kept["cells"]
    assert (cell["score"], cell["measured_ratio"], cell["samples"]) == (1.0, 0.3, 4)
    assert (tmp_path / "report.md").read_text() in capsys.readouterr().out


def test_a_list_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--out", str(tmp_path), "--list", "--policies", "full", "quest", "--ratios", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert "depth=0.5" in shown and "quest at 0.5" in shown
    assert re.search(r"2 cells, about \d+ minutes left\n$", shown)


def test_the_reduced_matrix_has_every_task_and_fits_in_an_hour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--reduced", "--out", str(tmp_path), "--list"]) == 0
    shown = capsys.readouterr().out
    minutes = int(re.search(r"(\d+) cells, about (\d+) minutes", shown)[2])
    assert minutes < 60


@pytest.mark.parametrize(
    "words, said",
    [
        (["--policies", "h2o"], "not one of"),
        (["--ratios", "2"], "Keep ratio"),
        (["--tasks", "sums"], "Task 'sums'"),
        (["--model", "/nowhere", "--ratios", "0.5"], "no tokenizer"),
        (["--server-flags", "wrong"], "follows no --flag"),
        (["--tasks", "names", "--lengths", "100"], "entries"),
    ],
)
def test_settings_that_cannot_be_end_in_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path), "--list", *words]) == 2
    shown = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", shown.err)
    assert said in shown.err


def test_a_server_that_is_not_there_is_reported_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SMALL, "--out", str(tmp_path), "--url", "http://127.0.0.1:9", "--policies", "full", "--no-plots"]
    assert main(command) == 1
    assert "- full: No answer from http://127.0.0.1:9" in capsys.readouterr().out


def test_one_server_has_one_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--out", str(tmp_path), "--url", "http://127.0.0.1:9", "--ratios", "0.5"]) == 2
    assert re.fullmatch(r"error: 10 cells for one server[^\n]+\n", capsys.readouterr().err)


def test_full_needs_no_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(RECALL / name, tmp_path)
    command = ["--out", str(tmp_path / "out"), "--model", str(tmp_path), "--reduced", "--list", "--policies"]
    assert main([*command, "full"]) == 0
    assert main([*command, "full", "snapkv"]) == 2
    assert re.fullmatch(r"error: [^\n]+\n", capsys.readouterr().err)
