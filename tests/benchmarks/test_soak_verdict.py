"""The verdict of a soak: every law can be broken, and is told where it is; an honest run breaks none."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.launch import RECALL
from benchmarks.recall import Language
from benchmarks.results import put
from benchmarks.soak import pools, verdict
from benchmarks.soak.command import table
from benchmarks.soak.crowd import GROUPS, MOST_USERS, OPENING, OWN, SHARED, Crowd
from benchmarks.soak.footprint import Footprint, Watch
from benchmarks.soak.plan import Fate, Planner
from benchmarks.soak.run import Soaked
from benchmarks.soak.tally import End, Tally
from hetero_sglang.cache.shared_memory import SharedMemory
from hetero_sglang.errors import HeteroError

HOLDS = Footprint(0.0, 4, 2_000_000_000, 300, 80, 5, 100_000_000)
IDLE: dict[str, Any] = {
    "integrity_current": True, "integrity": "ok", "live_requests": 0, "hot_pages": 90, "hot_pages_free": 90,
    "token_slots": 600, "token_slots_free": 600, "token_slots_cached": 0, "token_slots_written": 0,
    "hot_pages_cached": 0, "parked_requests": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    return Crowd(Language.load(RECALL), 12, seed=5)


# requests


def tally(**ends: int) -> Tally:
    made = Tally()
    for end, count in ends.items():
        for _ in range(count):
            made.ended(End(end), made.begins("single", "stays"), "why")
    return made


def test_requests_that_end_well_break_nothing() -> None:
    assert verdict.of_requests(tally(answered=5, aborted=2, disconnected=3)) == []


@pytest.mark.parametrize(
    "end, words", [("hung", "1 of 6 requests got no answer"), ("failed", "1 of 6 requests failed")]
)
def test_one_that_hangs_or_fails_is_told_with_its_reason(end: str, words: str) -> None:
    (sentence,) = verdict.of_requests(tally(answered=5, **{end: 1}))
    assert sentence.startswith(words) and sentence.endswith("why")


def test_one_that_never_ends_is_told() -> None:
    lost = tally(answered=4)
    lost.begins("single", "stays")
    assert verdict.of_requests(lost) == ["1 of 5 requests were sent and never ended: 4 ended well"]


def test_an_answer_with_another_s_entry_is_told() -> None:
    told = tally(answered=4)
    told.foreign.append("user 1 was told Noka 123 456, which is user 2's")
    (sentence,) = verdict.of_requests(told)
    assert "user 2's" in sentence


# what the server holds


def run_of(count: int, last: Footprint) -> list[Footprint]:
    return [HOLDS] * (3 * count // 4) + [last] * (count - 3 * count // 4)


@pytest.mark.parametrize("name", verdict.ALLOWED)
def test_what_grows_beyond_its_allowance_is_told(name: str) -> None:
    absolute, share = verdict.ALLOWED[name]
    before = getattr(HOLDS, name)
    allowed = int(max(absolute, share * before))
    assert verdict.of_footprints(run_of(40, replace(HOLDS, **{name: before + allowed}))) == []
    (sentence,) = verdict.of_footprints(run_of(40, replace(HOLDS, **{name: before + allowed + 2**20})))
    assert "grew from" in sentence
    assert verdict.of_footprints(run_of(40, replace(HOLDS, **{name: 0}))) == [], "to hold less is no fault"


def test_a_start_that_grows_and_a_run_too_short_to_judge_are_no_faults() -> None:
    small = replace(HOLDS, rss=HOLDS.rss // 2)
    assert verdict.of_footprints([small] * 10 + [HOLDS] * 30) == []
    grown = run_of(verdict.FEWEST - 1, replace(HOLDS, fds=9999))
    assert verdict.of_footprints(grown) == [] and verdict.of_footprints([HOLDS, *grown]) != []


def test_the_end_is_looked_at(tmp_path: Path) -> None:
    assert verdict.of_the_end(True, "all is well", []) == []
    found = verdict.of_the_end(False, "heterocache lost track of memory: 3 pages", ["hetero-1"])
    assert [words in sentence for words, sentence in zip(("ended", "lost track", "hetero-1"), found, strict=True)]


def test_shared_memory_and_open_files_are_seen() -> None:
    watch = Watch(os.getpid())
    before = watch.look()
    block = SharedMemory("soak-test", 1 << 20)
    after = watch.look()
    assert (after.shared, after.shared_bytes) == (before.shared + 1, before.shared_bytes + (1 << 20))
    assert after.fds > before.fds and after.threads >= 1 and after.rss > 1_000_000
    block.close()
    assert watch.look().shared == before.shared and not watch.left_over()


# the pools


def test_a_server_that_has_everything_back_breaks_nothing() -> None:
    assert pools.after_flush(IDLE) == []
    cached = IDLE | {"token_slots_free": 500, "token_slots_cached": 100, "hot_pages_cached": 7, "parked_requests": 2}
    assert pools.before_flush(cached) == []


@pytest.mark.parametrize(
    "change, words",
    [
        ({"integrity": "page 3 twice"}, "page 3 twice"),
        ({"integrity_current": False}, "never became idle"),
        ({"live_requests": 2}, "2 requests still hold"),
        ({"hot_pages_free": 89}, "1 of 90 hot pages"),
        ({"token_slots_free": 599}, "1 token slots are not free"),
        ({"hot_pages_cached": 4}, "after a flush 4 hot pages"),
        ({"parked_requests": 1}, "after a flush 1 working sets"),
        ({"token_slots_free": 584, "token_slots_cached": 16}, "after a flush 16 token slots are still cached"),
        ({"token_slots_written": 16}, "after a flush 16 token slots still count"),
    ],
)
def test_whatever_is_not_back_is_told(change: dict[str, Any], words: str) -> None:
    (sentence,) = pools.after_flush(IDLE | change)
    assert words in sentence


# users


def test_no_number_is_two_users_and_groups_begin_alike(crowd: Crowd) -> None:
    own = [list(user.document.entries.values())[SHARED:] for user in crowd.users]
    numbers = [number for entries in own for pair in entries for number in pair]
    assert len(numbers) == len(set(numbers)) == 2 * OWN * len(crowd.users)
    one, same, other = crowd.users[0], crowd.users[GROUPS], crowd.users[1]
    assert one.document.ids[:OPENING] == same.document.ids[:OPENING] != other.document.ids[:OPENING]
    assert one.document.ids != same.document.ids
    text = crowd.language.decode(one.document.ids[:OPENING])
    assert all(name in text for name in one.opening)
    assert Crowd(crowd.language, 12, seed=5).users == crowd.users != Crowd(crowd.language, 12, seed=6).users


def test_an_answer_with_another_user_s_numbers_is_foreign(crowd: Crowd) -> None:
    asker, other = crowd.users[0], crowd.users[7]
    mine, (theirs, pair) = list(asker.document.entries)[SHARED], list(other.document.entries.items())[SHARED]
    right = crowd.language.answer(asker.document, [mine, asker.opening[0]])
    assert crowd.foreign(asker, right) == []
    assert crowd.foreign(asker, f" {mine} 123 {pair[0]}\n") == [], "numbers of two entries are made up"
    leaked = f" {mine} {pair[0]} {pair[1]}"
    assert len(crowd.foreign(asker, leaked)) == len(crowd.foreign(asker, f"{right[:-1]},{leaked}\n")) == 1
    assert crowd.foreign(asker, f"{right}{leaked}") == [], "behind an answer the model makes entries up"
    assert len(crowd.foreign(asker, f"{right} Entry {theirs} {pair[0]} {pair[1]}.")) == 1, "but not somebody's"
    assert crowd.foreign(asker, leaked, asked=False) == []
    others = crowd.users[1].document.entries[crowd.users[1].opening[0]]
    (told,) = crowd.foreign(asker, f" {mine} {others[0]} {others[1]}\n")
    assert "group 1's" in told


def test_numbers_that_a_model_makes_up_are_hardly_ever_somebody_s(crowd: Crowd) -> None:
    assert len(crowd.owners) == OWN * len(crowd.users) + SHARED * GROUPS < 900 * 899 / 5000


def test_too_many_users_are_refused(crowd: Crowd) -> None:
    most = Crowd(crowd.language, MOST_USERS, 0)
    assert all(set(user.opening) < set(user.document.entries) for user in most.users)
    with pytest.raises(HeteroError, match="numbers for 1 to"):
        Crowd(crowd.language, MOST_USERS + 1, 0)


# plans


def test_one_seed_is_one_load_and_holds_everything(crowd: Crowd) -> None:
    def plans(seed: int) -> list[Any]:
        planner = Planner(crowd.users[3], crowd.language, seed)
        made = []
        for _ in range(400):
            made.append(planner.next())
            planner.answered(made[-1], [7] * made[-1].new)
        return made

    found = plans(1)
    assert found == plans(1) != plans(2)
    assert {plan.kind for plan in found} == {"tiny", "opening", "single", "talk", "long"}
    assert {plan.fate for plan in found} == set(Fate) and {plan.n for plan in found} == {1, 2, 3, 4}
    lengths = [len(plan.ids) + plan.new for plan in found]
    assert min(lengths) < 20 and 1500 < max(lengths) < 2900, "within the slots of the server"
    talks = [plan.ids for plan in found if plan.kind == "talk"]
    goes_on = sum(two[: len(one)] == one for one, two in zip(talks, talks[1:], strict=False))
    assert goes_on > len(talks) / 2


# what is kept


def test_a_run_is_kept_beside_others_and_told(tmp_path: Path) -> None:
    watch = Watch(1, samples=[HOLDS] * 20)
    soaked = Soaked(
        tally(answered=3), watch, {"kill": 2}, ["twice", "twice"], {"requests": 4, "integrity": "ok"}, 9.0, True
    )
    assert soaked.broken == ["twice"]
    row = {"name": "a", **soaked.as_dict(), "retractions": 1, "flushes": 0, "broken": []}
    assert row["ends"]["answered"] == row["sent"] == 3 and row["counters"] == {"requests": 4} and row["stopped"]
    path = tmp_path / "soak.json"
    for each in (row, row | {"name": "b"}, row | {"sent": 5}):
        put(path, each)
    assert [(each["name"], each["sent"]) for each in json.loads(path.read_text())["rows"]] == [("b", 3), ("a", 5)]
    assert "fds: 300, then 300" in table(row)
    assert "too few samples" in table(row | {"quarters": None})


def test_the_median_answer_is_told() -> None:
    told = tally(answered=1)
    told.seconds = [1.0, 2.0, 3.0]
    assert told.as_dict()["seconds"]["p50"] == 2.0 and told.as_dict()["seconds"]["most"] == 3.0
    assert told.under_way == 0 and told.done == 1 and told.aborted_all < time.monotonic()
