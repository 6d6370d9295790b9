"""What kind of world is drawn: how many rooms, what is locked, what moves."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hetero_sglang.errors import HeteroError

ROOM_WIDTH, ROOM_DEPTH, CORRIDOR = 4, 4, 3  # cells inside a room along the corridor and away from it; the corridor's
NORTH_WALL, SOUTH_WALL = ROOM_DEPTH + 1, ROOM_DEPTH + CORRIDOR + 2  # rows between the rooms and the corridor


@dataclass(frozen=True)
class Layout:
    """A corridor from west to east with `rooms` rooms on each side.

    Of these `locked` are locked, and behind one of the locked doors is the goal. `hazards` balls roam the corridor
    and as many rooms; `lava` cells in the corridor end an episode. A `mirrored` agent starts at the east end. After
    `limit` steps an episode has failed.
    """

    rooms: int = 6
    locked: int = 3
    hazards: int = 2
    lava: int = 0
    mirrored: bool = False
    view: int = 7  # cells that are seen ahead, the agent's own among them, and across
    limit: int = 220

    def __post_init__(self) -> None:
        if not 1 <= self.rooms <= MOST_ROOMS:
            raise HeteroError(f"{self.rooms} rooms on a side were asked for: pass 1 to {MOST_ROOMS}.")
        if not 1 <= self.locked <= min(6, self.rooms):
            raise HeteroError(f"{self.locked} locked rooms were asked for: pass 1 to {min(6, self.rooms)}.")
        if min(self.hazards, self.lava) < 0 or self.limit < 1:
            raise HeteroError("Hazards and lava must be 0 or more, and the limit 1 or more.")
        if self.view not in VIEWS:  # with less, a room is not seen whole from its door
            raise HeteroError(f"A view of {self.view} cells was asked for: pass 7 or 9.")

    @property
    def width(self) -> int:
        """Cells from west to east, walls included."""
        return self.rooms * (ROOM_WIDTH + 1) + 1

    @property
    def height(self) -> int:
        """Cells from north to south, walls included."""
        return 2 * ROOM_DEPTH + CORRIDOR + 4

    @property
    def middle(self) -> int:
        """The row in the middle of the corridor."""
        return ROOM_DEPTH + 2 + CORRIDOR // 2

    def of(self, rooms: int) -> Layout:
        """The same with another number of rooms, and as much in them as there is room for."""
        share = rooms / self.rooms
        limit = max(40, round(share * self.limit))
        return replace(self, rooms=rooms, locked=min(self.locked, max(1, rooms - 1)), limit=limit)


MOST_ROOMS, VIEWS = 9, (7, 9)
LAYOUTS = {
    "corridor": Layout(),
    "small": Layout(rooms=2, locked=1, hazards=0, limit=60),
    "mirrored": Layout(mirrored=True, lava=4),  # what the model was not trained on
}
