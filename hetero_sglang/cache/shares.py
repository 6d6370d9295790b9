"""How often a share was how large."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Shares:
    """Of shares in [0, 1]: how many lie in each of so many equal `parts` of it, and all of them added up."""

    parts: Sequence[int] = ()
    total: float = 0.0
