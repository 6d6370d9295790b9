"""How long something took, time after time."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Durations:
    """Of all times, how many and how long together; `listen` hears of each."""

    count: int = 0
    seconds: float = 0.0
    listen: Callable[[float], None] | None = None

    def add(self, seconds: float) -> None:
        """It took so long once more."""
        self.count += 1
        self.seconds += seconds
        if self.listen is not None:
            self.listen(seconds)
