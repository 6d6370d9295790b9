"""Rows of a prefix come from the host store as the reference says, wherever their slots lie."""

from __future__ import annotations

import pytest
import torch

from hetero_sglang.cache.host_layout import BLOCK
from hetero_sglang.ops import reference
from hetero_sglang.ops.triton.swap_in import bring

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("runs", [1, BLOCK, 70])
@pytest.mark.parametrize(("n", "heads", "size", "dtype"), [(0, 2, 32, torch.int64), (3, 1, 40, torch.int32),
                                                           (150, 3, 64, torch.int64)])  # fmt: skip
def test_rows_of_all_heads(n: int, heads: int, size: int, dtype: torch.dtype, runs: int) -> None:
    """What is no wanted row is poison; what lies behind the output is not written."""
    generator = torch.Generator().manual_seed(n + runs)
    firsts = torch.randperm(700 // runs, generator=generator)[: -(-n // runs)] * runs + 3
    slots = (firsts[:, None] + torch.arange(runs)).flatten()[:n]
    host = torch.full((45, heads, BLOCK, size), float("nan"), dtype=torch.bfloat16)
    rows = torch.randn(n, heads, size, generator=generator).bfloat16()
    host[slots // BLOCK, :, slots % BLOCK] = rows
    given = torch.empty_like(rows)
    reference.bring(host, slots, given)
    assert torch.equal(given, rows)
    out = torch.full((n + 2, heads, size), 7.0, dtype=torch.bfloat16, device=DEVICE)
    there = host.pin_memory() if DEVICE.type == "cuda" else host
    bring(there, slots.to(DEVICE, dtype), out[:n], programs=3)
    assert torch.equal(out[:n].cpu(), rows) and (out[n:] == 7).all()
