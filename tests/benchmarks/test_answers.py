"""Answers are compared as they come, and those that never came are counted."""

from __future__ import annotations

import json
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from benchmarks import device_identity, results
from benchmarks.answers import Answers, News
from benchmarks.device_identity import TOLD, Request, collect, serve
from hetero_sglang.config.choices import POLICIES


class Fake:
    """A server that answers with the last two of a request's ids, until it is gone."""

    def __init__(self, lives: int) -> None:
        self.lives = lives

    def generate(self, ids: list[int], tokens: int, stop: list[str], request: object = None) -> dict[str, Any]:
        if not self.lives:
            raise ConnectionResetError("reset by peer")
        self.lives -= 1
        return {"output_ids": ids[-tokens:]}

    def stats(self) -> dict[str, Any]:
        return {**dict.fromkeys(TOLD, 3), "requests": 9}


ASKED = [Request([n, n + 1, n + 2], 2) for n in range(4)]


def test_both_modes_are_compared_and_saved_answer_by_answer(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [[1, 2], [2, 3], [9, 9], [4, 5]]
    answers, news = {mode: Answers("quest", mode, wanted) for mode in ("graph", "eager")}, Queue()
    saved: list[int] = []
    serve("graph", Fake(9), ASKED, news)
    serve("eager", Fake(2), ASKED, news)
    collect(news, answers, lambda: saved.append(1))
    assert len(saved) == 4 + 1 + 2 + 1
    graph, eager = (mine.row() for mine in answers.values())
    counts = {"identical": 3, "answered": 4, "requests": 4, "different": [2], **dict.fromkeys(TOLD, 3)}
    assert graph == {"policy": "quest", "mode": "graph", **counts}
    assert (eager["identical"], eager["answered"], eager["requests"]) == (2, 2, 4)
    assert eager["error"] == "(reset by peer)"
    assert "quest, graph differs: 2 [9, 9] [3, 4]" in capsys.readouterr().out
    assert answers["graph"].line().startswith("quest, graph: 3 of 4 answers identical, {")
    text = "quest, eager: 2 of 2 answers identical, 2 requests not answered (reset by peer), {"
    assert answers["eager"].line().startswith(text)


def test_nothing_answered_is_said() -> None:
    told = Answers("quest", "graph", [[1], [2]])
    told.note(News("graph", None))
    assert told.line() == "quest, graph: 0 of 0 answers identical, 2 requests not answered, {}"


def test_requests_are_always_the_same() -> None:
    first, again = (list(device_identity.requests(2)) for _ in range(2))
    assert first == again and first == list(device_identity.requests(3))[:2]
    assert all(request.tokens > 0 for request in first)
    assert list(device_identity.requests(2, passed_over={0})) == list(device_identity.requests(3))[1:]


def test_an_answer_s_margin_is_that_of_its_closest_token() -> None:
    class Near:
        def generate(self, ids: list[int], tokens: int, **asked: object) -> dict[str, object]:
            tops = [[[-0.1, 5, None], [-3.1, 6, None]], [[-0.5, 7, None], [-0.625, 8, None]]]
            return {"output_ids": [5, 7], "meta_info": {"output_top_logprobs": tops}}

    assert device_identity.least_margin(Near(), Request([1], 2)) == ([5, 7], 0.125)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "run_information", lambda: {})
    return tmp_path


class Served(Fake):
    """In place of the servers: each answers rightly, but snapkv in graphs; quest has no room beside another."""

    started: list[dict[str, Any]] = []

    def __init__(self, model: Path, log: Path | None = None, env: dict[str, str] | None = None, **flags: Any) -> None:
        super().__init__(1000)
        self.flags = flags
        self.wrong = flags["kv_policy"] == "snapkv" and "cuda_graph_max_bs" in flags
        self.wrong = self.wrong and not flags.get("disable_cuda_graph")

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self) -> None:
        self.started.append(self.flags)
        if self.flags["kv_policy"] == "quest" and self.flags.get("disable_cuda_graph"):
            raise RuntimeError("the server ended")

    def stop(self) -> None:
        pass

    def tail(self) -> str:
        return "MemoryError: no room\n"

    def generate(self, ids: list[int], tokens: int, stop: list[str], request: object = None) -> dict[str, Any]:
        reply = super().generate(ids, tokens, stop)
        near = [[[-0.1, 5, None], [-0.2 if ids[0] == 1 else -3.1, 6, None]]]
        output = [7] if self.wrong else reply["output_ids"]
        return {"output_ids": output, "meta_info": {"output_top_logprobs": near}}


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[dict[str, Any]]:
    """The command line, over ASKED; flags of the servers that it started."""
    monkeypatch.setattr(device_identity, "Server", Served)
    monkeypatch.setattr(device_identity, "candidates", lambda: iter(ASKED))
    monkeypatch.setattr(Served, "started", [])
    monkeypatch.setattr("sys.argv", ["device_identity", "--requests", "2", *words])
    device_identity.main()
    return Served.started


def test_every_policy_is_collected_and_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policies = ("--policies", "snapkv", "quest", "heterocache:index=none:roles=ratio")
    collected = run(monkeypatch, "--write", *policies)
    assert [flags["kv_policy"] for flags in collected] == ["snapkv", "quest", "heterocache"]
    assert all(flags["hetero_keep_ratio"] == 0.3 and flags["hetero_window"] == 32 for flags in collected)
    told = json.loads((folder / "device-identity-cpu-heterocache-index-none-roles-ratio.json").read_text())
    assert told["flags"]["hetero_roles"] == "ratio" and told["passed_over"] == {"1": pytest.approx(0.1)}
    assert told["outputs"] == [ASKED[0].ids[-2:], ASKED[2].ids[-2:]] and told["margins"] == [3.0, 3.0]
    compared = run(monkeypatch, *policies, "rocketkv", "--flags", "dtype=float16")
    assert [flags.get("disable_cuda_graph", False) for flags in compared] == [False, True] * 3
    assert all(flags["dtype"] == "float16" for flags in compared)
    saved = json.loads((folder / "device-identity.json").read_text())
    found = {(row["policy"], row["mode"]): row for row in saved["rows"]}
    assert len(found) == 6 and saved["left_out"] == ["rocketkv"]
    assert found["snapkv", "graph"]["identical"] == 0 and found["snapkv", "eager"]["identical"] == 2
    assert found["quest", "graph"]["identical"] == 2 and found["quest", "eager"]["error"] == "(MemoryError: no room)"
    assert all(found["heterocache:index=none:roles=ratio", mode]["identical"] == 2 for mode in ("graph", "eager"))


def test_all_policies_but_plain_sglang_s_are_the_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collected = run(monkeypatch, "--write")
    assert {flags["kv_policy"] for flags in collected} == {name for name in POLICIES if name != "full"}
    assert len(collected) == len(list(folder.iterdir())) == len(POLICIES), "heterocache twice"
    for words, said in ((["--policies", "full"], "name other"), (["--reference", "none"], "--write without a GPU")):
        with pytest.raises(SystemExit):
            run(monkeypatch, *words)
        assert said in capsys.readouterr().err
