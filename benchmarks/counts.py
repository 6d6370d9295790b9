"""Where a step without a server counts what comes."""

from __future__ import annotations

from typing import TypedDict

import torch


class Counts(TypedDict):
    """Fields of StepTables."""

    request: torch.Tensor
    came: torch.Tensor
    told: torch.Tensor


def counts(requests: int, heads: int, device: torch.device) -> Counts:
    """Of a step of request slots 0, 1, ... with so many compressed heads."""
    came = torch.zeros(requests, 2, heads, dtype=torch.int32, device=device)
    told = torch.zeros_like(came, device="cpu").pin_memory() if came.is_cuda else came
    return {"request": torch.arange(requests, dtype=torch.int32, device=device), "came": came, "told": told}
