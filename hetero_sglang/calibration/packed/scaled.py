"""Weights of 8 bits that are numbers by themselves, times a scale: fp8, also ModelOpt's, compressed-tensors' fp8 and
int8, bitsandbytes' int8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def plain(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> torch.Tensor:
    """[out, in] float32 of `weight` [out, in] and `weight_scale`: one number, one a row, one for each part of rows, or
    of rows and columns; `weight_scale_inv`: one for each `weight_block_size`.

    Raises ValueError where the scales are not of as many numbers."""
    weight = tensors["weight"].float()
    if "SCB" in tensors:
        return weight * tensors["SCB"].float()[:, None] / 127
    if "weight_scale_inv" in tensors:
        rows, columns = about.get("weight_block_size") or (128, 128)
        return weight * _wide(tensors["weight_scale_inv"].float(), weight.shape, int(rows), int(columns))
    scale = tensors["weight_scale"].float()
    parts = scale.reshape(-1, 1) if scale.ndim < 2 else scale
    shares = [-(-size // count) for size, count in zip(weight.shape, parts.shape, strict=True)]
    if "weight_zero_point" in tensors:
        weight = weight - _wide(tensors["weight_zero_point"].float().reshape(parts.shape), weight.shape, *shares)
    return weight * _wide(parts, weight.shape, *shares)


def _wide(scale: torch.Tensor, shape: torch.Size, rows: int, columns: int) -> torch.Tensor:
    """Each scale as often as numbers have it in common: [out, in]."""
    wide = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    if any(
        found - size not in range(share) for found, size, share in zip(wide.shape, shape, (rows, columns), strict=True)
    ):
        raise ValueError(f"scales {list(scale.shape)} are for another weight than {list(shape)}")
    return wide[: shape[0], : shape[1]]
