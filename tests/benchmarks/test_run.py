"""A run saves what it has and ends early when it must."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results
from benchmarks.run import Run, Stopped, add_log_option, add_options, named


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "run_information", lambda: {"commit": "here"})
    return tmp_path


def given(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser, "speed")
    add_log_option(parser)
    return parser.parse_args(words)


def saved(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "speed.json").read_text())


def test_every_row_is_saved_at_once(folder: Path) -> None:
    with Run(given(), tokens=7) as run:
        for number in range(3):
            run.keep({"number": number})
            assert saved(folder)["rows"] == [{"number": n} for n in range(number + 1)]
    assert saved(folder)["run"] == {"commit": "here"} and saved(folder)["tokens"] == 7


def test_sigterm_ends_the_block_with_what_there_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, closed = signal.getsignal(signal.SIGTERM), []
    with Run(given()) as run:
        run.keep({"number": 0})
        run.does("8 x 32768")
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            run.keep({"number": 1})
        except Exception:
            pytest.fail("what is measured took the end for a failure")
        finally:
            closed.append("server")
    assert closed and saved(folder)["rows"] == [{"number": 0}]
    assert saved(folder)["stopped"] == "SIGTERM while 8 x 32768"
    assert "stopped by SIGTERM while 8 x 32768" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_limit_ends_it_too(folder: Path) -> None:
    with Run(given("--limit", "1")) as run:
        time.sleep(120)
        pytest.fail("nothing ended it")
    assert run.told["stopped"] == "the limit of 1 s while starting"


def test_after_an_end_nothing_interrupts_the_stopping_of_servers() -> None:
    with Run(given()):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except Stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            raise


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="no server"), Run(given()):
        raise RuntimeError("no server")


def test_logs_lie_where_they_are_wanted(tmp_path: Path) -> None:
    assert Run(given()).log("full") is None
    assert Run(given("--log-dir", str(tmp_path), "--name", "x")).log("0.25", 16) == tmp_path / "x-0.25-16.log"


def test_flags_of_words() -> None:
    assert named(["page_size=16", "hetero_profile=a=b"]) == {"page_size": "16", "hetero_profile": "a=b"}
