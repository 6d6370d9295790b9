"""A fault's promise counts as held only where nothing of it was broken."""

from __future__ import annotations

import pytest

from benchmarks.faults.load import CUT_OFF, Answer
from benchmarks.faults.tally import Tally

RIGHT, OTHER, FAILED, HUNG = Answer((1, 2)), Answer((1, 3)), Answer(reason=CUT_OFF), Answer()


@pytest.mark.parametrize(
    ("answers", "broken", "leaked", "held"),
    [
        ([RIGHT, RIGHT], [], [], 1),
        ([RIGHT, FAILED], [], [], 1),
        ([RIGHT, OTHER], [], [], 0),
        ([RIGHT, HUNG], [], [], 0),
        ([RIGHT, RIGHT], ["the worker was not replaced"], [], 0),
        ([RIGHT, RIGHT], [], ["process 7 outlives its server"], 0),
        ([], [], [], 1),
    ],
)
def test_a_promise_is_held_where_nothing_of_it_is_broken(
    answers: list[Answer], broken: list[str], leaked: list[str], held: int
) -> None:
    tally = Tally()
    tally.add(answers, [RIGHT, RIGHT], broken, leaked)
    assert (tally.times, tally.held, bool(tally.said)) == (1, held, not held)
    assert tally.requests == len(answers) and tally.leaks == len(leaked)
    assert tally.answered + tally.hung + sum(tally.failures.values()) == len(answers)


def test_reasons_are_counted_without_their_numbers() -> None:
    tally = Tally()
    for tokens in (4, 1200):
        reason = f"host memory has changed under {tokens} tokens of the request"
        tally.add([Answer(reason=reason)], [RIGHT], [], [], seconds=tokens / 100)
    assert tally.as_dict()["failures"] == {"host memory has changed under N tokens of the request": 2}
    assert tally.worst_seconds == 12.0
