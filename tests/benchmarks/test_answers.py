"""Answers are compared as they come, and those that never came are counted."""

from __future__ import annotations

from queue import Queue
from typing import Any

import pytest

from benchmarks import device_identity
from benchmarks.answers import Answers, News
from benchmarks.device_identity import TOLD, Request, collect, serve


class Saves:
    rows: list[dict[str, Any]] = []
    saved = 0

    def save(self) -> None:
        self.saved += 1


class Fake:
    """A server that answers with the last two of a request's ids, until it is gone."""

    def __init__(self, lives: int) -> None:
        self.lives = lives

    def generate(self, ids: list[int], tokens: int, stop: list[str]) -> dict[str, Any]:
        if not self.lives:
            raise ConnectionResetError("reset by peer")
        self.lives -= 1
        return {"output_ids": ids[-tokens:]}

    def stats(self) -> dict[str, Any]:
        return {**dict.fromkeys(TOLD, 3), "requests": 9}


ASKED = [Request([n, n + 1, n + 2], 2) for n in range(4)]


def test_both_modes_are_compared_and_saved_answer_by_answer(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [[1, 2], [2, 3], [9, 9], [4, 5]]
    answers, news, run = {mode: Answers(mode, wanted) for mode in ("graph", "eager")}, Queue(), Saves()
    serve("graph", Fake(9), ASKED, news)
    serve("eager", Fake(2), ASKED, news)
    collect(news, answers, run)
    assert run.saved == 4 + 1 + 2 + 1
    graph, eager = run.rows
    told = dict.fromkeys(TOLD, 3)
    assert graph == {"mode": "graph", "identical": 3, "answered": 4, "requests": 4, "different": [2], **told}
    assert (eager["identical"], eager["answered"], eager["requests"]) == (2, 2, 4)
    assert eager["error"] == "(reset by peer)"
    assert "graph differs: 2 [9, 9] [3, 4]" in capsys.readouterr().out
    assert answers["graph"].line().startswith("graph: 3 of 4 answers identical, {")
    text = "eager: 2 of 2 answers identical, 2 requests not answered (reset by peer), {"
    assert answers["eager"].line().startswith(text)


def test_nothing_answered_is_said() -> None:
    told = Answers("graph", [[1], [2]])
    told.note(News("graph", None))
    assert told.line() == "graph: 0 of 0 answers identical, 2 requests not answered, {}"


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
