"""However tokens leave, rows that are said to be whole are those of full depth, and so is what deep tokens say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy import CONTEXT, LAYERS, REQUESTS, WORDS, World

from hetero_sglang.config import development
from hetero_sglang.sglang.early_exit.passes import MOST

PLACES = st.lists(st.integers(1, LAYERS - 1), min_size=1, max_size=3, unique=True).map(sorted)
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("begin"), st.integers(1, 12)),
        st.tuples(st.sampled_from(["end", "drop", "retract", "again"]), st.integers(0, 5)),
    ),
    min_size=4, max_size=25,
)  # fmt: skip
USUAL = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def forced(monkeypatch: pytest.MonkeyPatch, share: float | None) -> None:
    monkeypatch.setattr(development, "forced_exits", lambda: share)


def play(world: World, acts: list[tuple[str, int]]) -> None:
    for what, number in acts:
        if not world.running or what == "begin" and len(world.running) < REQUESTS:
            world.begin([world.random.randrange(WORDS) for _ in range(number + 1)])
        mine = world.running[number % len(world.running)]
        if what == "step":
            for _ in range(number):
                if max(len(req.tokens) for req in world.running) < CONTEXT:
                    world.step()
        elif what != "begin":
            world.check(mine)
            if what == "end":
                world.end(mine)
            elif what == "drop":
                world.drop(mine)
            elif what == "retract":
                world.retract(mine)
            elif what == "again" and len(mine.tokens) < CONTEXT:  # the next turn of one that has ended
                world.end(mine)
                world.begin([*mine.tokens, world.random.randrange(WORDS)])
    for req in world.running:
        world.check(req)


@USUAL
@given(
    PLACES, ACTS, st.integers(0, 1 << 20), st.sampled_from([0.3, 0.7, 1.0]), st.sampled_from([2, 5, 16]), st.booleans()
)
def test_random_exits_aborts_retractions_and_prefix_hits(
    monkeypatch: pytest.MonkeyPatch, layers: list[int], acts: list[Any], seed: int, share: float, most: int, parts: bool
) -> None:
    """At once, and in parts that graphs could be."""
    forced(monkeypatch, share)
    world = World(monkeypatch, seed, layers, 0.5, most=most, parts=parts)
    play(world, acts)
    assert world.exits.waiting.count <= most


@USUAL
@given(PLACES, ACTS, st.integers(0, 1 << 20), st.booleans())
def test_copied_rows_are_shared_with_nobody(
    monkeypatch: pytest.MonkeyPatch, layers: list[int], acts: list[Any], seed: int, parts: bool
) -> None:
    """The same laws for what is said to be whole; deep tokens behind copied rows say what those make of them."""
    forced(monkeypatch, 0.5)
    world = World(monkeypatch, seed, layers, 0.5, copied=True, parts=parts)
    monkeypatch.setattr(world, "wanted", lambda depth, state: None)
    for what, number in acts:
        if what == "begin" and len(world.running) < REQUESTS:
            world.begin([world.random.randrange(WORDS) for _ in range(number)])
        elif what == "step" and world.running and max(len(req.tokens) for req in world.running) < CONTEXT:
            world.step()
        elif what == "end" and world.running:
            req = world.running[number % len(world.running)]
            exits = [at for at, (depth, _) in enumerate(req.told) if depth < LAYERS]
            first = len(req.tokens) - len(req.told) + (exits[0] - 1 if exits else len(req.told) - 1)
            assert world.end(req) == first
            rows, _ = world.reference(req.tokens[:first])
            assert (world.rows.kv[:, :, req.slots[:first]] - rows).abs().max() < 1e-9


def test_no_branch_is_asked_at_threshold_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sure branch with threshold 1 lets none go, and its head is not even run."""
    forced(monkeypatch, None)
    world = World(monkeypatch, 3, [1, 3], 1e-6, agreement=1.0)
    monkeypatch.setattr(world.exits, "look", lambda *_, **__: pytest.fail("asked"))
    play(world, [("begin", 5), ("begin", 3), ("step", 6), ("step", 6)])
    assert world.exits.counts.tokens == 24 and world.exits.counts.layers == 24 * LAYERS


def test_sixteen_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, 1.0)
    world = World(monkeypatch, 1, [2, 4], 0.5)
    req = world.begin([1, 2, 3])
    seen = []
    monkeypatch.setattr(world.exits, "_compares", lambda: False)
    for _ in range(2 * (MOST + 1)):
        world.step()
        seen.append(world.exits.waiting.count)
    assert seen == 2 * [*range(1, MOST + 1), 0]
    assert [depth for depth, _ in req.told[1:]] == 2 * [*[2] * MOST, LAYERS]
    world.check(req)


def test_a_large_batch_runs_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes those along that have waited, of a batch that was small."""
    forced(monkeypatch, 1.0)
    world = World(monkeypatch, 1, [2], 0.5, max_batch=2)
    for number in range(2):
        world.begin([number, 2, 3])
    for _ in range(3):
        world.step()
    assert world.exits.waiting.count == 3
    world.begin([7])
    world.step()
    assert world.exits.waiting.count == 0
    assert [req.told[-1][0] for req in world.running] == [LAYERS] * 3
    for req in world.running:
        world.check(req)


def test_a_request_that_tells_more_than_tokens_runs_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, 1.0)
    world = World(monkeypatch, 1, [2], 0.5)
    req = world.begin([4, 2])
    world.step()
    original = world.exits._tries
    monkeypatch.setattr(world.exits, "_tries", lambda batch: original(_asked(batch)))
    world.step()
    assert [depth for depth, _ in req.told] == [LAYERS, 2, LAYERS]
    world.check(req)


def _asked(batch: Any) -> Any:
    batch.return_logprob = True
    return batch


def test_compared_exits_run_on_and_say_what_full_depth_says(monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, None)
    world = World(monkeypatch, 5, [3], 1e-6)  # always sure; every fifth exit is compared
    req = world.begin([4, 2, 9])
    for _ in range(10):
        world.step()
    assert [depth for depth, _ in req.told[1:]] == 2 * [3, 3, 3, 3, LAYERS]
    world.check(req)
    counts, branch = world.exits.counts, world.exits.exits.branches[0]
    _, states = world.reference(req.tokens[: len(req.slots)])
    first = len(req.tokens) - len(req.told)
    agreed = 0
    for number, (depth, logits) in enumerate(req.told):
        if number and depth == LAYERS:
            said = branch.hidden(states[3, first + number - 1][None])[0] @ world.model.lm_head.T
            agreed += int(said.argmax() == logits.argmax())
    assert (counts.compared, counts.agreed, counts.exits[3]) == (2, agreed, 8)


def test_a_retracted_request_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waited of it has no rows any more: others may have taken their places."""
    forced(monkeypatch, 1.0)
    world = World(monkeypatch, 2, [2], 0.5)
    reqs = [world.begin([number, 5, 6]) for number in range(2)]
    for _ in range(3):
        world.step()
    world.retract(reqs[0])
    assert world.exits.waiting.requests == [reqs[1]]
    forced(monkeypatch, 0.0)
    world.step()
    for req in reqs:
        world.check(req)
