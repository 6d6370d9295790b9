"""What the agent sees at one moment, and nothing else of the world."""

from __future__ import annotations

from dataclasses import dataclass

Cell = tuple[int, int]  # x from west, y from north
HEADINGS = ("east", "south", "west", "north")
STEPS: tuple[Cell, ...] = ((1, 0), (0, 1), (-1, 0), (0, -1))  # by heading
UNSEEN, FLOOR, WALL, BALL, GOAL, LAVA = "unseen", "floor", "wall", "ball", "goal", "lava"
NOTHING = "nothing"


@dataclass(frozen=True)
class Sight:
    """Where the agent is, what it holds, and the cells in its view by name.

    `view[j][i]` is a cell's name: row 0 is the farthest, the last one the agent's own, column 0 the leftmost.
    """

    place: Cell
    heading: int
    holding: str  # a key's name, or NOTHING
    view: tuple[tuple[str, ...], ...]

    def where(self, i: int, j: int) -> Cell:
        """The world's cell in column i and row j of the view."""
        ahead, aside = len(self.view) - 1 - j, i - len(self.view) // 2
        (fx, fy), (rx, ry) = STEPS[self.heading], STEPS[(self.heading + 1) % 4]
        return self.place[0] + fx * ahead + rx * aside, self.place[1] + fy * ahead + ry * aside

    def seen(self) -> list[tuple[str, Cell]]:
        """Every cell that is seen, by name and place."""
        return [
            (name, self.where(i, j)) for j, row in enumerate(self.view) for i, name in enumerate(row) if name != UNSEEN
        ]

    def things(self) -> list[tuple[str, Cell]]:
        """Doors, keys and goals among them, the farthest row first."""
        return [(name, place) for name, place in self.seen() if name.startswith(("door", "key", GOAL))]

    @property
    def front(self) -> str:
        """The name of the cell that the agent faces."""
        return self.view[-2][len(self.view) // 2]
