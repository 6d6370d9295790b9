"""What branches say of held-out tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from hetero_sglang.calibration.exits.states import States
from hetero_sglang.calibration.exits.teacher import Teacher
from hetero_sglang.exits.branch import Branch
from hetero_sglang.exits.calibrate import HeldOut

_ROWS = 256


@dataclass(frozen=True)
class Part:
    """Records of some windows, one after the other: the first one's number, and how many each window gives."""

    begin: int
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """Of all."""
        return sum(self.sizes)

    @property
    def end(self) -> int:
        """Behind the last."""
        return self.begin + self.count


@torch.inference_mode()
def measured(
    branches: Sequence[Branch], teacher: Teacher, states: States, part: Part, confidence: str, num_layers: int
) -> HeldOut:
    """How sure the branches are of the records of `part`, whether they agree with the last layer, and how much less
    they make of the text."""
    sure: list[torch.Tensor] = []
    agrees: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    for batch in states.chunks(part.begin, part.end, _ROWS, teacher.head.device):
        full = _loss(teacher.logits(batch.states[:, -1]), batch.next)
        said = [
            branch.ask(batch.states[:, number], teacher.logits, confidence) for number, branch in enumerate(branches)
        ]
        sure.append(torch.stack([each for _, each in said]).cpu())  # [B, n]
        agrees.append(torch.stack([logits.argmax(-1) == batch.first for logits, _ in said]).cpu())
        losses.append(torch.stack([_loss(logits, batch.next) - full for logits, _ in said]).cpu())
    layers = tuple(branch.layer for branch in branches)
    confidence_of, agreeing, excess = (np.asarray(torch.cat(each, 1).numpy()) for each in (sure, agrees, losses))
    windows = np.repeat(np.arange(len(part.sizes)), part.sizes)
    return HeldOut(confidence_of, agreeing, excess, windows, layers, num_layers)


def _loss(logits: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Of logits [n, V] for the words that come, in nats: [n], 0 where the text ends."""
    return F.cross_entropy(logits, after, ignore_index=-1, reduction="none")
