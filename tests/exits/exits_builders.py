"""Small branches with random tensors."""

from __future__ import annotations

import torch

from hetero_sglang.exits.branch import Branch, shapes
from hetero_sglang.exits.exits import Exits
from hetero_sglang.exits.operating_point import OperatingPoint

LAYERS, HIDDEN, VOCABULARY = 5, 8, 12
CONFIG = {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "vocab_size": VOCABULARY}
ROW = OperatingPoint(0.99, (0.9, 0.8, 0.7), 3.5, (0.25, 0.25, 0.25, 0.25))
NEVER = OperatingPoint(1.0, (1.0, 1.0, 1.0), 5.0, (0.0, 0.0, 0.0, 1.0))


def branch(layer: int, kind: str, size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Branch:
    """Of a kind, with random tensors."""
    rng = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=rng)
        for name, shape in shapes(kind, HIDDEN, VOCABULARY, size).items()
    }  # fmt: skip
    others = {name: tensors.pop(name) for name in ("norm", "rest") if name in tensors}
    if "tokens" in tensors:
        del tensors["tokens"]
        tokens = torch.randperm(VOCABULARY, generator=rng)[:size].sort().values
    else:
        tokens = None
    matrices = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return Branch(layer, VOCABULARY, 1e-5, tokens=tokens, **others, **matrices)


def exits(*branches: Branch, **other: object) -> Exits:
    """Three branches, one of each kind, unless others are given."""
    three = branches or (branch(1, "frequent", 5), branch(2, "adapter", 3), branch(4, "head", VOCABULARY))
    fields = {"confidence": "margin", "calibration": (ROW, NEVER), "provenance": {"model": "tiny"}} | other
    return Exits(LAYERS, HIDDEN, VOCABULARY, branches=three, **fields)  # type: ignore[arg-type]
