"""A model's layers, one after the other (SGLang's LlamaModel.forward)."""

from __future__ import annotations

from typing import Any

import torch


def through(
    model: Any, first: int, last: int, batch: Any, hidden: torch.Tensor, residual: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """States [n, H] of a batch behind layers [first, last), of those before them; `residual` None: behind none."""
    for layer in model.model.layers[first:last]:
        hidden, residual = layer(batch.positions, hidden, batch, residual)
    assert residual is not None  # a layer has run
    return hidden, residual
