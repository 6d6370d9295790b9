"""What a prompt's new tokens look at most and their heads do not hold: it comes to be read once, to no places."""

import torch

from hetero_sglang.cache.index_store import LayerIndex
from hetero_sglang.ops.base import Counted, StepTables
from hetero_sglang.ops.reference.choose import score_bin
from hetero_sglang.ops.reference.workspace import Coming, Workspace

WORTH = 76  # the lowest bin of what comes: a 4,096th of what a group looks at


def best(scores: torch.Tensor, low: int, high: int, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `most` of the runs in [low, high) by scores [C, U] float32, as their bins tell them apart; of the last
    one's bin the first: heads and runs, int64 [m] both."""
    ordered = score_bin(scores[:, low:high]).sort(dim=1, descending=True, stable=True)
    head, rank = (ordered.values[:, :most] >= WORTH).nonzero().unbind(1)
    return head, ordered.indices[head, rank] + low


def lack(layer: LayerIndex, step: StepTables, sink: int, window: int, work: Workspace) -> None:
    """After `ask` of what is not held: which runs come to be read once."""
    run = layer.run
    most = min(int(work.most) // run, work.limit(step.length.numel() * layer.heads.numel(), run))
    for found in work.found:
        head, runs = best(found.scores, sink // run, (int(step.length[found.request]) - window) // run, most)
        work.counted[Counted.ROWS] += runs.numel() * run
        if runs.numel():
            work.coming.append(Coming(found.request, found.heads[head], runs, None))
