"""compressed-tensors' `pack-quantized`: whole numbers of few bits in words of 32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hetero_sglang.calibration.packed.words import unpacked


def plain(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> torch.Tensor:
    """[out, in] float32 of `weight_packed` [out, in * bits / 32], `weight_scale` [out, groups], `weight_shape`, and
    where there are any `weight_zero_point` [out * bits / 32, groups] and each input's group, `weight_g_idx` [in].

    Raises ValueError for words of another kind (nvfp4)."""
    words, scale = tensors["weight_packed"], tensors["weight_scale"].float()
    if words.dtype != torch.int32:
        raise ValueError(f"their words are {words.dtype}, not int32")
    rows, columns = (int(size) for size in tensors["weight_shape"])
    bits = words.shape[1] * 32 // columns
    if bits not in (2, 4, 8) or list(words.shape) != [rows, -(-columns * bits // 32)]:
        raise ValueError(f"words {list(words.shape)} are not those of {rows} rows of {columns} in 2, 4 or 8 bits")
    codes = unpacked(words, bits)[:rows, :columns]
    middle: torch.Tensor | int = 1 << (bits - 1)
    given = tensors.get("weight_g_idx")
    group = (
        given.long() if given is not None else torch.arange(columns, device=words.device) // (columns // scale.shape[1])
    )
    zeros = tensors.get("weight_zero_point")
    if zeros is not None:
        middle = unpacked(zeros.t().contiguous(), bits).t()[:rows][:, group]  # kept as the codes are
    return (codes - middle) * scale[:, group]
