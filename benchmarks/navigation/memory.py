"""What an agent knows of its world: all that it has seen so far."""

from __future__ import annotations

from collections import deque

from .sight import BALL, FLOOR, GOAL, STEPS, WALL, Cell, Sight

Distances = dict[Cell, int]


class Memory:
    """Cells by name, as last seen; balls only where they are seen now, for they move on."""

    def __init__(self) -> None:
        self.cells: dict[Cell, str] = {}
        self.balls: set[Cell] = set()
        self.start: Cell | None = None

    def add(self, sight: Sight) -> None:
        """Take in what is seen."""
        self.start = self.start or sight.place
        self.balls = {place for name, place in sight.seen() if name == BALL}
        for name, place in sight.seen():
            self.cells[place] = FLOOR if name == BALL else name

    def known(self, prefix: str, suffix: str = "") -> list[Cell]:
        """Where cells are whose name starts and ends so, in order of place."""
        return sorted(at for at, name in self.cells.items() if name.startswith(prefix) and name.endswith(suffix))

    def open(self, cell: Cell) -> bool:
        """It is known, and can be walked on where no ball is."""
        name = self.cells.get(cell, WALL)
        return name in (FLOOR, GOAL) or name.endswith("open")

    def distances(self, target: Cell) -> Distances:
        """Steps to the target from each open cell; the target itself need not be one. Balls are not asked about."""
        found, queue = {target: 0}, deque([target])
        while queue:
            x, y = queue.popleft()
            for dx, dy in STEPS:
                cell = (x + dx, y + dy)
                if cell not in found and self.open(cell):
                    found[cell] = found[(x, y)] + 1
                    queue.append(cell)
        return found
