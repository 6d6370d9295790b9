"""One row of a calibration: thresholds, and what they gave on the held-out text."""

import math
from dataclasses import dataclass
from typing import Any

from hetero_sglang.errors import HeteroError


@dataclass(frozen=True)
class OperatingPoint:
    """With these `thresholds`, one a branch, at least `agreement` of the held-out tokens have the first choice of full
    depth. Raises HeteroError for numbers out of range."""

    agreement: float  # in (0, 1]
    thresholds: tuple[float, ...]  # in (0, 1]; 1: never
    depth: float  # mean number of layers a token runs until it exits
    share: tuple[float, ...]  # of the tokens, by branch; the last runs all layers

    def __post_init__(self) -> None:
        check_agreement(self.agreement)
        for number, threshold in enumerate(self.thresholds):
            if not 0.0 < threshold <= 1.0:
                raise HeteroError(
                    f"the threshold of branch {number} at agreement {self.agreement:g} is {threshold:g}; it must be "
                    "above 0 and at most 1."
                )
        if len(self.share) != len(self.thresholds) + 1:
            raise HeteroError(
                f"the row of agreement {self.agreement:g} has {len(self.thresholds)} thresholds and {len(self.share)} "
                "shares; there must be one share more."
            )
        if not all(0.0 <= part <= 1.0 for part in self.share) or not math.isclose(sum(self.share), 1.0, abs_tol=1e-3):
            raise HeteroError(f"the shares at agreement {self.agreement:g} do not add up to 1; train again.")
        if not (math.isfinite(self.depth) and self.depth >= 0.0):
            raise HeteroError(f"the mean depth at agreement {self.agreement:g} is {self.depth:g}; train again.")

    @property
    def never(self) -> bool:
        """Whether no token exits."""
        return all(threshold == 1.0 for threshold in self.thresholds)

    def encode(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "agreement": self.agreement,
            "thresholds": list(self.thresholds),
            "depth": round(self.depth, 4),
            "share": [round(part, 6) for part in self.share],
        }


def check_agreement(agreement: float) -> None:
    """Raises HeteroError unless it lies in (0, 1]."""
    if not 0.0 < agreement <= 1.0:
        raise HeteroError(f"the agreement is {agreement:g}; choose one above 0 and at most 1.")
