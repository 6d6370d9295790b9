"""The branches of a model and when each lets a token go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.branch import Branch
from hetero_sglang.exits.confidence import check_kind
from hetero_sglang.exits.operating_point import OperatingPoint, check_agreement
from hetero_sglang.profile.json_file import naming


@dataclass(frozen=True, eq=False)
class Exits:
    """A token exits at the first branch that is at least as sure as its threshold.

    Raises HeteroError for branches that are none of such a model, and for a calibration that is not of the branches."""

    layers: int  # of the model
    hidden: int  # H
    vocabulary: int  # V
    confidence: str  # a key of confidence.MEASURES
    branches: tuple[Branch, ...]  # ascending by layer
    calibration: tuple[OperatingPoint, ...]  # ascending by agreement; the last is agreement 1, no exit
    provenance: Mapping[str, Any] = field(default_factory=dict)  # model, fingerprint, texts, settings

    def __post_init__(self) -> None:
        check_kind(self.confidence)
        if not self.branches:
            raise HeteroError("there is no branch; train at least one.")
        for number, branch in enumerate(self.branches):
            with naming(f"branch {number}"):
                self._check_branch(branch)
        for before, after in pairwise(self.branches):
            if before.layer >= after.layer:
                raise HeteroError(
                    f"the branch at layer {before.layer} comes before that at layer {after.layer}; they must ascend."
                )
        self._check_calibration()

    @property
    def fingerprint(self) -> str | None:
        """Of the checkpoint that the branches were trained on; None where the file does not say."""
        found = self.provenance.get("fingerprint")
        return found if isinstance(found, str) else None

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers run by a token that exits at each branch, and by one that does not."""
        return (*(branch.layer for branch in self.branches), self.layers)

    def point(self, agreement: float) -> OperatingPoint:
        """The calibrated row of an agreement in (0, 1], else the next stricter one. Raises HeteroError outside."""
        check_agreement(agreement)
        return next(row for row in self.calibration if row.agreement >= agreement)

    def thresholds(self, agreement: float) -> tuple[float, ...]:
        """One a branch in (0, 1], for use with `confidence.leaves`; a branch whose threshold is 1 need not be asked.

        Raises HeteroError for an agreement outside (0, 1]."""
        return self.point(agreement).thresholds

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Exits:
        """The same with its branches on a device, see `Branch.to`."""
        return replace(self, branches=tuple(branch.to(device, dtype) for branch in self.branches))

    def check_model(self, layers: int, hidden: int, vocabulary: int, name: str) -> None:
        """Raises HeteroError, naming the file `name`, unless the branches are of a model of this shape."""
        for noun, mine, model in (
            ("layers", self.layers, layers),
            ("hidden dimensions", self.hidden, hidden),
            ("words", self.vocabulary, vocabulary),
        ):
            if mine != model:
                raise HeteroError(
                    f"{name} is of a model of {mine} {noun} and this one has {model}; train branches of this model."
                )

    def _check_branch(self, branch: Branch) -> None:
        if not 1 <= branch.layer < self.layers:
            raise HeteroError(f"its layer is {branch.layer}; it must lie between 1 and {self.layers - 1}.")
        if (branch.hidden_size, branch.vocabulary) != (self.hidden, self.vocabulary):
            raise HeteroError(
                f"it is of {branch.hidden_size} hidden dimensions and {branch.vocabulary} words and the model has "
                f"{self.hidden} and {self.vocabulary}; train branches of this model."
            )

    def _check_calibration(self) -> None:
        rows = self.calibration
        for row in rows:
            if len(row.thresholds) != len(self.branches):
                raise HeteroError(
                    f"the row of agreement {row.agreement:g} has {len(row.thresholds)} thresholds for "
                    f"{len(self.branches)} branches; train again."
                )
        if any(before.agreement >= after.agreement for before, after in pairwise(rows)):
            raise HeteroError("the rows of the calibration must ascend by agreement; train again.")
        if not rows or rows[-1].agreement != 1.0 or not rows[-1].never:
            raise HeteroError("the calibration must end with agreement 1, where every threshold is 1; train again.")
