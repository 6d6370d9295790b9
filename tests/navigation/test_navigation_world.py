"""Worlds: the same from the same seed, solvable by an expert that knows what it has seen, and rightly counted."""

from __future__ import annotations

import pytest

pytest.importorskip("minigrid")

from minigrid.core.world_object import Ball, Door, Key, Lava  # noqa: E402

from benchmarks.navigation.expert import Expert  # noqa: E402
from benchmarks.navigation.layout import LAYOUTS, Layout  # noqa: E402
from benchmarks.navigation.sight import BALL, GOAL, UNSEEN  # noqa: E402
from benchmarks.navigation.world import World, name  # noqa: E402
from hetero_sglang.errors import HeteroError  # noqa: E402

BARE = Layout(rooms=2, locked=1, hazards=0, limit=90)


def cells(world: World) -> list[str]:
    return [name(world.grid.get(x, y)) for y in range(world.height) for x in range(world.width)]


def played(world: World) -> World:
    expert = Expert(world.layout)
    while not world.over:
        world.act(expert.reply(world.look()).action)
    return world


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_expert_solves_every_world_and_touches_nothing(layout: Layout) -> None:
    for seed in range(12):
        world = played(World(layout, seed))
        assert world.reached and not world.burnt, seed
        assert (world.hits, world.bumps) == (0, 0), seed


@pytest.mark.parametrize("rooms", range(1, 10))
def test_worlds_of_every_size_are_solved(rooms: int) -> None:
    for seed in range(3):
        assert played(World(LAYOUTS["corridor"].of(rooms), seed)).reached


def test_a_seed_fixes_the_world_and_how_its_hazards_move() -> None:
    one, same, other = (World(LAYOUTS["corridor"], seed) for seed in (3, 3, 4))
    assert cells(one) == cells(same) != cells(other)
    start = cells(one)
    for action in ("forward", "left", "wait", "forward", "right") * 4:
        one.act(action)
        same.act(action)
        assert cells(one) == cells(same) and one.look() == same.look()
    assert start != cells(one)  # hazards do move


def test_a_layout_says_what_is_in_a_world() -> None:
    world = World(Layout(rooms=5, locked=3, hazards=2, lava=2), 1)
    things = [each for each in world.grid.grid if each is not None]
    doors = [each for each in things if isinstance(each, Door)]
    assert len(doors) == 10
    assert sum(each.is_locked for each in doors) == 3
    assert {each.color for each in things if isinstance(each, Key)} == {each.color for each in doors if each.is_locked}
    assert sum(isinstance(each, Ball) for each in things) == 4
    assert sum(isinstance(each, Lava) for each in things) == 2
    assert cells(world).count(GOAL) == 1


def test_a_sight_names_the_cells_of_the_world_and_none_behind_walls() -> None:
    for seed in range(4):
        world = World(LAYOUTS["corridor"], seed)
        expert = Expert(world.layout)
        while not world.over:
            sight = world.look()
            assert sight.seen()
            for word, (x, y) in sight.seen():
                assert word == name(world.grid.get(x, y))
            world.act(expert.reply(sight).action)
    first = World(LAYOUTS["corridor"], 0).look()
    rows = {place[1] for _, place in first.seen()}
    middle = LAYOUTS["corridor"].middle
    assert rows == set(range(middle - 2, middle + 3))  # the corridor and its walls, no room
    assert any(word == UNSEEN for row in first.view for word in row)


def test_what_is_bumped_into_is_counted_by_kind() -> None:
    world = World(BARE, 0)
    world.act("left")
    world.act("left")  # west: the border wall
    world.act("forward")
    assert (world.hits, world.bumps, world.agent_pos) == (0, 1, (1, BARE.middle))
    ball = Ball()
    world.act("left")
    world.act("left")  # east again
    world.put_obj(ball, 2, BARE.middle)
    assert world.look().front == BALL
    world.act("forward")
    assert (world.hits, world.bumps, world.agent_pos) == (1, 1, (1, BARE.middle))
    world.act("pickup")  # a hazard cannot be taken
    assert world.carrying is None
    assert world.step_count == 7


def test_lava_ends_an_episode_and_a_key_stays_in_its_lock() -> None:
    world = World(BARE, 0)
    world.put_obj(Lava(), 2, BARE.middle)
    world.act("forward")
    assert world.burnt and world.over and not world.reached
    world = World(BARE, 0)
    world.put_obj(Door("red", is_locked=True), 2, BARE.middle)
    world.act("toggle")
    assert world.look().front == "door-red-locked"
    world.carrying = Key("red")
    assert world.look().holding == "key-red"
    world.act("toggle")
    assert world.look().front == "door-red-open" and world.carrying is None


def test_steps_run_out() -> None:
    world = World(Layout(rooms=1, locked=1, limit=3), 0)
    for _ in range(3):
        assert not world.over
        world.act("wait")
    assert world.over and not world.reached


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rooms": 10}, "pass 1 to 9"),
        ({"rooms": 2, "locked": 3}, "pass 1 to 2"),
        ({"hazards": -1}, "must be 0 or more"),
        ({"view": 6}, "pass 7 or 9"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(changes: dict[str, int], said: str) -> None:
    with pytest.raises(HeteroError, match=said):
        Layout(**changes)
