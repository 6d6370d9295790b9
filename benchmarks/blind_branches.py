"""Branches that know nothing of what a model says: to measure what asking costs, and to see who has left at one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hetero_sglang.exits.branch import Branch, shapes
from hetero_sglang.exits.exits import Exits
from hetero_sglang.exits.files import save
from hetero_sglang.exits.operating_point import OperatingPoint

MARKS = (2940, 2941)  # words of the recall model that no text has: a token that is one has left early


def write_branches(
    path: Path, config: dict[str, Any], layers: Sequence[int], words: Sequence[int], threshold: float = 0.9,
    others: float = -10.0,
) -> Path:  # fmt: skip
    """Branches behind `layers` of a model of this configuration, which know these `words` and give any other the logit
    `others`; tokens go at `threshold` unless agreement 1 is asked for."""
    hidden, vocabulary, depth = (config[name] for name in ("hidden_size", "vocab_size", "num_hidden_layers"))
    rng = torch.Generator().manual_seed(0)
    wanted, tokens = shapes("frequent", hidden, vocabulary, len(words)), torch.tensor(words)
    branches = tuple(
        Branch(
            layer, vocabulary, config["rms_norm_eps"], torch.ones(hidden),
            head=(torch.randn(wanted["head"], generator=rng) / hidden**0.5).bfloat16(), tokens=tokens.clone(),
            rest=torch.full(wanted["rest"], others),
        )
        for layer in layers
    )  # fmt: skip
    never = (0.0,) * len(layers) + (1.0,)
    points = tuple(
        OperatingPoint(share, (each,) * len(layers), depth, never) for share, each in ((0.9, threshold), (1.0, 1.0))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save(Exits(depth, hidden, vocabulary, "probability", branches, points), path)
    return path
