"""Episodes: a perfect player scores 1, and what goes wrong is counted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

pytest.importorskip("minigrid")

from benchmarks.navigation.episode import Outcome, expert_steps, play, summary  # noqa: E402
from benchmarks.navigation.expert import Expert  # noqa: E402
from benchmarks.navigation.layout import Layout  # noqa: E402
from benchmarks.navigation.play import latency  # noqa: E402
from benchmarks.navigation.words import IDS, REPLY, decode, encode, read_turn  # noqa: E402

LAYOUT = Layout(rooms=3, locked=2, limit=240)


class Scripted:
    """The expert, reading nothing but the words of the histories; it says `instead` in every third turn."""

    def __init__(self, instead: str | None = None) -> None:
        self.instead = instead
        self.experts: dict[int, Expert] = {}
        self.had: dict[int, int] = {}
        self.turns = 0

    def replies(self, histories: Sequence[tuple[int, Sequence[int]]]) -> list[list[int]]:
        said = []
        for number, ids in histories:
            assert ids[0] == IDS["<s>"]
            fresh = decode(ids[self.had.get(number, 1) :])
            words = self.experts.setdefault(number, Expert(LAYOUT)).reply(read_turn(fresh)).words
            self.turns += 1
            if self.instead and self.turns % 3 == 0:
                words = [*words[:-1], self.instead]
            said.append(encode(words))
            self.had[number] = len(ids) + REPLY
        return said


def test_a_perfect_player_has_every_success_at_the_experts_length() -> None:
    found = summary(play(LAYOUT, range(6), Scripted()))
    assert (found["success"], found["efficiency"], found["unread"]) == (1.0, 1.0, 0)
    assert found["hits_per_100_steps"] == found["bumps_per_100_steps"] == 0
    assert found["steps"] == sum(expert_steps(LAYOUT, seed) for seed in range(6))


def test_waiting_every_third_turn_costs_a_third_of_the_steps() -> None:
    found = play(LAYOUT, range(4), Scripted("wait"))
    for each in found:
        assert each.reached
        assert each.steps > each.expert and 0.5 < each.efficiency < 0.8
        assert each.efficiency == each.expert / each.steps


def test_a_reply_without_an_action_is_counted_and_waits() -> None:
    found = play(LAYOUT, range(2), Scripted("floor"))
    assert all(each.reached for each in found)
    assert sum(each.unread for each in found) == sum(each.steps for each in found) // 3


def test_who_never_moves_fails_at_the_limit() -> None:
    class Idle:
        def replies(self, histories: Sequence[tuple[int, Sequence[int]]]) -> list[list[int]]:
            return [[IDS["wait"]] * REPLY for _ in histories]

    (found,) = play(LAYOUT, [1], Idle())
    assert (found.reached, found.steps, found.efficiency) == (False, LAYOUT.limit, 0.0)
    assert found.expert == expert_steps(LAYOUT, 1)


def test_the_summary_counts() -> None:
    one = Outcome(0, True, 100, 80, 1, 2, False, 0, 4000)
    two = Outcome(1, False, 50, 40, 2, 1, True, 3, 2000)
    found = summary([one, two])
    assert (found["success"], found["efficiency"], found["burnt"]) == (0.5, 0.4, 0.5)
    assert (found["hits_per_100_steps"], found["bumps_per_100_steps"]) == (2.0, 2.0)
    assert (found["unread"], found["mean_tokens"], found["most_tokens"]) == (3, 3000, 4000)


def test_latencies_are_in_milliseconds_and_the_slowest_counts() -> None:
    found = latency([0.001 * n for n in range(1, 102)])
    assert found["p50_ms"] == pytest.approx(51)
    assert found["p99_ms"] == pytest.approx(100)
    assert found["mean_ms"] == pytest.approx(51)
