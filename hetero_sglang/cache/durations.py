"""How long something took, time after time."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Durations:
    """Of all times, how many and how long together; `listen` hears of each."""

    count: int = 0
    seconds: float = field(default=0.0, compare=False)
    listen: Callable[[float], None] | None = field(default=None, compare=False)

    def add(self, seconds: float) -> None:
        """It took so long once more."""
        self.count += 1
        self.seconds += seconds
        if self.listen is not None:
            self.listen(seconds)
