"""An expert that knows only what it has seen, and says at each step what it is after and where it goes next."""

from __future__ import annotations

from .layout import Layout
from .memory import Distances, Memory
from .sight import FLOOR, GOAL, NOTHING, STEPS, Cell, Sight
from .words import Reply

_FAR = 10**6  # steps to where no way leads


class Expert:
    """Goes to the goal once seen; else opens the lock that its key fits; else fetches a key; else explores.

    It explores by opening the nearest door that it knows of, and without one by going on along the corridor. A
    shortest way over cells that it knows is taken each time; where hazards stand on all of them it waits.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.memory = Memory()

    def reply(self, sight: Sight) -> Reply:
        """What to do now, with this seen and all before it."""
        memory = self.memory
        memory.add(sight)
        thing, target, distances = self._aim(sight)
        own = sight.place
        ahead, right, behind, left = (_beside(own, sight.heading + turn) for turn in range(4))
        for cell, action in ((ahead, "forward"), (right, "right"), (left, "left"), (behind, "left")):
            if distances.get(cell, _FAR) < distances.get(own, _FAR) and cell not in memory.balls:
                if action == "forward" and cell == target:
                    action = _use(thing)
                return Reply(thing, target, cell, action)
        return Reply(thing, target, own, "wait")

    def _aim(self, sight: Sight) -> tuple[str, Cell, Distances]:
        memory = self.memory
        wanted = memory.known(GOAL)
        if not wanted and sight.holding != NOTHING:
            wanted = memory.known(sight.holding.replace("key", "door"), "locked")
        if not wanted and sight.holding == NOTHING:
            wanted = memory.known("key")
        best = self._nearest(sight.place, wanted) or self._nearest(sight.place, memory.known("door", "closed"))
        if best is None:
            best = self._onward()
        target, distances = best
        return memory.cells.get(target, FLOOR), target, distances

    def _nearest(self, own: Cell, wanted: list[Cell]) -> tuple[Cell, Distances] | None:
        """The one of `wanted` with the shortest way, or of those that no way leads to now the first."""
        ways = [(target, self.memory.distances(target)) for target in wanted]
        return min(ways, key=lambda way: way[1].get(own, _FAR), default=None)

    def _onward(self) -> tuple[Cell, Distances]:
        """The farthest known cell of the corridor's middle, in the direction away from the start."""
        memory = self.memory
        row = [cell for cell in memory.cells if cell[1] == self.layout.middle and memory.cells[cell] == FLOOR]
        assert memory.start is not None
        start = memory.start[0]
        target = max(row, key=lambda cell: abs(cell[0] - start))
        return target, memory.distances(target)


def _beside(cell: Cell, heading: int) -> Cell:
    dx, dy = STEPS[heading % 4]
    return cell[0] + dx, cell[1] + dy


def _use(thing: str) -> str:
    """The action on a thing in front."""
    return "toggle" if thing.startswith("door") else "pickup" if thing.startswith("key") else "forward"
