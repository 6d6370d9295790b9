"""What tensor-parallel ranks decide together: a batch leaves on all of them or on none, and all verify the same drafts.

What each makes of the same sums may differ in its last bits, and ranks that part wait for each other without end."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed import ReduceOp, all_reduce


def least(values: torch.Tensor, group: Any) -> torch.Tensor:
    """Of each number [n] the least that a rank of SGLang's `group` has, [n]; all of them must ask, outside of graphs.
    NaN counts as 0 with several ranks: a reduction may pass over it."""
    if group.world_size == 1:
        return values
    found = values.nan_to_num(0.0)
    all_reduce(found, ReduceOp.MIN, group.device_group)
    return found
