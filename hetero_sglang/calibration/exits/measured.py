"""What branches say of held-out tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hetero_sglang.calibration.exits.states import States
from hetero_sglang.calibration.exits.teacher import Teacher
from hetero_sglang.exits.branch import Branch
from hetero_sglang.exits.calibrate import HeldOut

_ROWS = 256


@torch.inference_mode()
def measured(
    branches: Sequence[Branch], teacher: Teacher, states: States, part: range, confidence: str, num_layers: int
) -> HeldOut:
    """How sure the branches are of the records in `part`, and whether they agree with the last layer."""
    sure: list[torch.Tensor] = []
    agrees: list[torch.Tensor] = []
    for batch in states.chunks(part.start, part.stop, _ROWS, teacher.head.device):
        said = [
            branch.choose(batch.states[:, number], teacher.logits, confidence) for number, branch in enumerate(branches)
        ]
        sure.append(torch.stack([each for _, each in said]).cpu())  # [B, n]
        agrees.append(torch.stack([first == batch.first for first, _ in said]).cpu())
    layers = tuple(branch.layer for branch in branches)
    confidences, agreements = (np.asarray(torch.cat(each, 1).numpy()) for each in (sure, agrees))
    return HeldOut(confidences, agreements, layers, num_layers)
