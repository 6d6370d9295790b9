"""Counting answers of two servers: those that hang on the last bits of a logit are counted apart."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.device_identity import LEAST_MARGIN, Request
from benchmarks.launch import RECALL
from benchmarks.recall import Language
from benchmarks.weights.__main__ import line, words
from benchmarks.weights.compare import WHOLE, compared, questions

FAR, NEAR = 2 * LEAST_MARGIN, LEAST_MARGIN / 2


class Answers:
    """A server that answers prompt n with the n-th of `given`: tokens, and how far the next best ones were."""

    def __init__(self, given: list[tuple[list[int], float]]) -> None:
        self.given = given

    def generate(self, ids: list[int], *_: Any, **__: Any) -> dict[str, Any]:
        tokens, margin = self.given[ids[0]]
        best = [[[0.0, token, ""], [-margin, 0, ""]] for token in tokens]
        return {"output_ids": tokens, "meta_info": {"output_top_logprobs": best}}

    def stats(self) -> dict[str, Any]:
        return {"compressed_requests": 0}


def test_firm_answers_are_counted_apart() -> None:
    plain: Any = Answers([([1, 2], FAR), ([3], NEAR), ([4, 5], FAR), ([6], NEAR)])
    ours: Any = Answers([([1, 2], 0), ([9], 0), ([4, 9], 0), ([6], 0)])
    row = compared(plain, ours, [Request([number], 2) for number in range(4)])
    assert (row["identical"], row["requests"], row["firm_identical"], row["firm"]) == (2, 4, 1, 2)
    assert [(each["number"], each["plain"], each["ours"]) for each in row["different"]] == [
        (1, [3], [9]),
        (2, [4, 5], [4, 9]),
    ]
    recall = {"right": 7, "total": 8}
    told = line({"format": "awq", "recall_plain": recall, "recall_ours": recall, **row})
    assert "2 of 4 answers identical, of the firm 1 of 2; recall 7 of 8 plain, 7 ours" in told
    assert "not served: no card" in line({"format": "awq", "error": "no card"})


def test_questions_that_are_compared_stay_whole() -> None:
    asked = questions(Language.load(RECALL), 10)
    lengths = [len(each.ids) + each.tokens for each in asked]
    assert len(asked) == 10 and max(lengths) < WHOLE and min(lengths) < 600
    assert [each.ids for each in asked] == [each.ids for each in questions(Language.load(RECALL), 10)]


@pytest.mark.parametrize(("given", "found"), [(["a=1=2", "b"], {"a": "1=2", "b": True}), ([], {})])
def test_flags_may_be_bare(given: list[str], found: dict[str, Any]) -> None:
    assert words(given) == found
