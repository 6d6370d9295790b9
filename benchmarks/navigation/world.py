"""Partially observed worlds of rooms, doors, keys and moving hazards, on minigrid.

Minigrid's grid, view, doors and keys are as they are; its balls move here, and a key stays in the lock that it opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minigrid.core.actions import Actions
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball, Door, Goal, Key, Lava, WorldObj
from minigrid.minigrid_env import MiniGridEnv

from .layout import CORRIDOR, NORTH_WALL, ROOM_DEPTH, ROOM_WIDTH, SOUTH_WALL, Layout
from .sight import FLOOR, NOTHING, STEPS, UNSEEN, Sight

ACTIONS = {
    "left": Actions.left,
    "right": Actions.right,
    "forward": Actions.forward,
    "pickup": Actions.pickup,
    "toggle": Actions.toggle,
    "wait": Actions.done,
}


@dataclass(frozen=True)
class Room:
    """The room number `at` from the west, on the corridor's south side or the north one."""

    at: int
    south: bool

    @property
    def left(self) -> int:
        """Its westernmost column."""
        return 1 + self.at * (ROOM_WIDTH + 1)


class World(MiniGridEnv):
    """One world of a layout; the seed fixes all of it. `look` tells what is seen now, `act` does an action."""

    def __init__(self, layout: Layout, seed: int) -> None:
        self.layout = layout
        self.balls: list[Ball] = []
        super().__init__(
            MissionSpace(lambda: "find the goal"),
            width=layout.width,
            height=layout.height,
            max_steps=layout.limit,
            agent_view_size=layout.view,
        )
        self.reached = self.burnt = False
        self.hits = self.bumps = 0  # steps into a hazard, and into a wall, a closed door or a key
        self.reset(seed=seed)

    @property
    def over(self) -> bool:
        """The goal was reached, the agent burnt, or its steps are used up."""
        return self.reached or self.burnt or self.step_count >= self.layout.limit

    def look(self) -> Sight:
        """What the agent sees now."""
        grid, visible = self.gen_obs_grid()
        size = self.layout.view
        view = [[name(grid.get(i, j)) if visible[i, j] else UNSEEN for i in range(size)] for j in range(size)]
        view[-1][size // 2] = name(self.grid.get(*self.agent_pos))  # minigrid shows there what the agent carries
        x, y = self.agent_pos
        return Sight(
            (int(x), int(y)),
            int(self.agent_dir),
            name(self.carrying) if self.carrying else NOTHING,
            tuple(map(tuple, view)),
        )

    def act(self, action: str) -> None:
        """Do one of ACTIONS; then each hazard moves to a cell beside it, if that is free."""
        front = self.grid.get(*self.front_pos)
        if action == "forward" and front is not None and not front.can_overlap():
            self.hits += isinstance(front, Ball)
            self.bumps += not isinstance(front, Ball)
        locked = action == "toggle" and isinstance(front, Door) and front.is_locked
        self.step(Actions.done if action == "pickup" and isinstance(front, Ball) else ACTIONS[action])
        if locked and front.is_open:
            self.carrying = None
        under = self.grid.get(*self.agent_pos)
        self.reached, self.burnt = isinstance(under, Goal), isinstance(under, Lava)
        self._move_hazards()

    def gen_obs(self) -> dict[str, Any]:
        """Nothing: minigrid asks at each step, before hazards have moved; `look` is what is used."""
        return {}

    def _move_hazards(self) -> None:
        for ball in self.balls:
            (x, y), (dx, dy) = ball.cur_pos, STEPS[int(self.np_random.integers(4))]
            ahead = (int(x) + dx, int(y) + dy)
            if self.grid.get(*ahead) is None and ahead != tuple(self.agent_pos):
                self.grid.set(int(x), int(y), None)
                self.put_obj(ball, *ahead)

    def _gen_grid(self, width: int, height: int) -> None:
        """Rooms along a corridor, each with a door to it; keys where they can be got before they are needed."""
        layout, draw = self.layout, self.np_random
        self.grid, self.balls, self.mission = Grid(width, height), [], "find the goal"
        self._build_walls(width, height)
        rooms = [Room(at, south) for south in (False, True) for at in range(layout.rooms)]
        order = [rooms[int(n)] for n in draw.permutation(len(rooms))]
        locked, plain = order[: layout.locked], order[layout.locked :]
        colors = [COLOR_NAMES[int(n)] for n in draw.permutation(len(COLOR_NAMES))]
        for room in rooms:
            other = COLOR_NAMES[int(draw.integers(len(COLOR_NAMES)))]
            color = colors[locked.index(room)] if room in locked else other
            door = room.left + int(draw.integers(ROOM_WIDTH)), SOUTH_WALL if room.south else NORTH_WALL
            self.put_obj(Door(color, is_locked=room in locked), *door)
        self._put(Goal(), locked[0])
        empty = [*locked, *plain]
        for at, color in enumerate(colors[: layout.locked]):  # in a plain room, or in one locked after its own
            choices = [room for room in empty if room not in locked[: at + 1]]
            room = choices[int(draw.integers(len(choices)))]
            self._put(Key(color), room)
            empty.remove(room)
        self._place_hazards(rooms)
        self.agent_pos = (width - 2 if layout.mirrored else 1, layout.middle)
        self.agent_dir = 2 if layout.mirrored else 0

    def _build_walls(self, width: int, height: int) -> None:
        self.grid.wall_rect(0, 0, width, height)
        for y in (NORTH_WALL, SOUTH_WALL):
            self.grid.horz_wall(0, y)
        for x in range(ROOM_WIDTH + 1, width - 1, ROOM_WIDTH + 1):
            self.grid.vert_wall(x, 1, ROOM_DEPTH)
            self.grid.vert_wall(x, SOUTH_WALL + 1, ROOM_DEPTH)

    def _put(self, thing: WorldObj, room: Room) -> None:
        """On a free cell of the room, not in the row behind its door."""
        rows = range(SOUTH_WALL + 2, self.height - 1) if room.south else range(1, NORTH_WALL - 1)
        free = [(x, y) for y in rows for x in range(room.left, room.left + ROOM_WIDTH) if not self.grid.get(x, y)]
        self.put_obj(thing, *free[int(self.np_random.integers(len(free)))])

    def _place_hazards(self, rooms: list[Room]) -> None:
        """Balls in the corridor and in rooms, and lava in the corridor's middle, which can be walked round."""
        layout, draw = self.layout, self.np_random
        columns = [3 + int(n) for n in draw.permutation(max(0, self.width - 6))]
        for x in columns[: layout.lava]:
            self.put_obj(Lava(), x, layout.middle)
        for x in columns[layout.lava : layout.lava + layout.hazards]:
            self._add_ball()
            self.put_obj(self.balls[-1], x, layout.middle - 1 + int(draw.integers(CORRIDOR)))
        for n in draw.permutation(len(rooms))[: layout.hazards]:
            self._add_ball()
            self._put(self.balls[-1], rooms[int(n)])

    def _add_ball(self) -> None:
        self.balls.append(Ball())


def name(thing: WorldObj | None) -> str:
    """A thing of minigrid's in one word: door-red-locked, key-blue, wall, ball, goal, lava; floor for none."""
    if thing is None:
        return FLOOR
    if isinstance(thing, Door):
        return f"door-{thing.color}-{'locked' if thing.is_locked else 'open' if thing.is_open else 'closed'}"
    return f"key-{thing.color}" if isinstance(thing, Key) else str(thing.type)
