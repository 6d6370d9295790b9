"""AWQ's 4 bits (AutoAWQ's `gemm` layout)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hetero_sglang.calibration.packed.words import unpacked

_BITS = 4
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of a word's columns, lowest bits first


def plain(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> torch.Tensor:
    """[out, in] float32 of `qweight` [in, out / 8] and, of each group of inputs, `qzeros` [groups, out / 8] and
    `scales` [groups, out]. Raises ValueError for another layout."""
    layout = str(about.get("version") or "gemm").lower()
    if layout != "gemm":
        raise ValueError(f"their layout is {layout!r}, not gemm")
    codes, zeros = (unpacked(tensors[name], _BITS, _ORDER) for name in ("qweight", "qzeros"))  # [in, out]
    scales = tensors["scales"].float()
    group = codes.shape[0] // scales.shape[0]
    numbers = (codes.unflatten(0, (-1, group)) - zeros[:, None]) * scales[:, None]  # [groups, group, out]
    return numbers.flatten(0, 1).t()
