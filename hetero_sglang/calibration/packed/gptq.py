"""GPTQ's 2, 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hetero_sglang.calibration.packed.words import unpacked


def plain(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> torch.Tensor:
    """[out, in] float32 of `qweight` [in * bits / 32, out], of each group `qzeros` [groups, out * bits / 32] and
    `scales` [groups, out], and each input's group, `g_idx` [in]. Raises ValueError for 3 bits, which words split."""
    scales = tensors["scales"].float()
    bits = tensors["qzeros"].shape[1] * 32 // scales.shape[1]
    if 32 % bits:
        raise ValueError(f"they have {bits} bits, not 2, 4 or 8")
    codes = unpacked(tensors["qweight"].t().contiguous(), bits)  # [out, in]
    zeros = unpacked(tensors["qzeros"], bits)  # [groups, out]
    if about.get("checkpoint_format") != "gptq_v2":  # which alone keeps them as they are
        zeros = (zeros + 1) & ((1 << bits) - 1)
    inputs = codes.shape[1]
    given = tensors.get("g_idx")
    group = given.long() if given is not None else torch.arange(inputs, device=codes.device) // (inputs // len(scales))
    return (codes - zeros.t()[:, group]) * scales.t()[:, group]
