"""What a prompt's new tokens look at most and their heads do not hold: it comes to be read once, to no places."""

import torch

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.ops.base import LayerIndex, StepTables, flat_rows
from hetero_sglang.ops.reference.choose import score_bin
from hetero_sglang.ops.reference.workspace import Coming, Workspace

WORTH = 76  # the lowest bin of what comes: a 4,096th of what a group looks at


def lacking(
    scores: torch.Tensor, held: torch.Tensor, low: int, high: int, most: int
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The best `most` of the runs in [low, high) that C heads do not hold, as their scores' bins tell them apart; of
    the last one's bin the first: heads and runs, int64 [m] both.

    scores [C, U] float32 of the request's runs; held [C, n] int32: each selected run."""
    bins = score_bin(scores[:, low:high]).scatter(1, held.long() - low, -1)  # [C, n']
    best = bins.sort(dim=1, descending=True, stable=True)
    head, rank = (best.values[:, :most] >= WORTH).nonzero().unbind(1)
    return head, best.indices[head, rank] + low


def lack(
    layer: LayerIndex, step: StepTables, hot: HotPool, sink: int, window: int, work: Workspace
) -> None:  # fmt: skip
    """After `ask`: which runs come to be read once."""
    run, position = layer.run, hot.position.view(-1)
    most = min(int(work.most) // run, work.limit(step.length.numel() * layer.heads.numel(), run))
    for found in work.found:
        length = int(step.length[found.request])
        for scores, c in zip(found.scores, found.heads.tolist(), strict=True):
            cap, start = (int(table[found.request, layer.first + c]) for table in (step.cap, step.page_start))
            if (places := (cap - sink - window - run + 1) // run) <= 0:
                continue
            row = sink + torch.arange(places, device=position.device) * run
            held = position[flat_rows(step.page_list, start, row, hot.page_size)] // run  # [n]
            _, runs = lacking(scores[None], held[None], sink // run, (length - window) // run, most)
            work.counted[0] += runs.numel() * run
            work.coming.append(Coming(found.request, torch.full_like(runs, c), runs, None))
