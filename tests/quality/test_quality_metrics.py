"""Metrics against values worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.quality.files.metrics import (
    all_in,
    any_in,
    edit_similarity,
    exact_class,
    first_line,
    rouge_l,
    same_number,
    token_f1,
)

CLASSES = ["animal", "animal name", "place"]


@pytest.mark.parametrize(
    "metric, said, answers, score",
    [
        (all_in, "The numbers are 17 and 23.", ["17", "23", "42"], 2 / 3),
        (all_in, "in PARIS", ["Paris"], 1),
        (any_in, "She was born in Paris.", ["Rome", "paris"], 1),
        (any_in, "", ["Rome"], 0),
        (token_f1, "The Kessel hills.", ["Kessel hills"], 1),  # article and stop do not count
        (token_f1, "in the Kessel hills", ["the Kessel range", "Kessel"], 0.5),  # 2*1/(3+2); 2*1/(3+1)
        (token_f1, "b b c", ["b c c"], 2 / 3),  # b and c in common, once each: 2*2/(3+3)
        (token_f1, "", ["x"], 0),
        (rouge_l, "two bridges need work now", ["two old bridges need work"], 0.8),  # four in order: 2*4/(5+5)
        (rouge_l, "c b a", ["a b c"], 1 / 3),  # one in order: 2*1/(3+3)
        (rouge_l, "", ["a"], 0),
        (edit_similarity, "\n# note\nreturn ab\nmore", ["return ac"], 16 / 18),  # 8 of 9 characters each
        (edit_similarity, "    x = 1", ["x = 1"], 1),
        (edit_similarity, "```python\n# only a comment", ["x"], 0),
        (same_number, "There are 12, not 3.", ["12"], 1),
        (same_number, "Paragraph 4", ["Paragraph 14"], 0),
        (same_number, "none", ["2"], 0),
        (first_line(token_f1), " Rome\nQuestion: and then?", ["Rome"], 1),
    ],
)
def test_a_score_worked_out_by_hand(metric, said: str, answers: list[str], score: float) -> None:
    assert metric(said, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    "said, right",
    [
        (" Animal.\nQuestion: next", True),
        ("It is an animal", True),
        ("animal name", False),  # another class, though it holds the right one's word
        ("animal or place", False),  # two guesses
        ("animals", False),
        ("nothing known", False),
    ],
)
def test_a_class_counts_when_it_alone_is_named(said: str, right: bool) -> None:
    assert exact_class(said, ["animal"], CLASSES) == float(right)


def test_without_known_classes_the_line_must_be_the_class() -> None:
    assert exact_class("Place", ["place"]) == 1
    assert exact_class("a place", ["place"]) == 0
