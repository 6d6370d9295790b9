"""bitsandbytes' 4 bits: places in a table of 16 numbers (nf4, fp4)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

_STATE = "weight.quant_state.bitsandbytes__"


def plain(tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> torch.Tensor:
    """[out, in] float32 of `weight` [out * in / 2, 1] uint8, the first number in its high bits, and of each block
    `weight.absmax`, which may be quantised itself (`weight.nested_absmax`)."""
    state = tensors[next((name for name in tensors if name.startswith(_STATE)), _STATE)]
    said = json.loads(bytes(state.cpu().tolist()))
    packed, most = tensors["weight"].flatten(), tensors["weight.absmax"]
    if "weight.nested_absmax" in tensors:
        coarse = tensors["weight.nested_absmax"].float().repeat_interleave(int(said["nested_blocksize"]))[: len(most)]
        most = tensors["weight.nested_quant_map"].float()[most.long()] * coarse + float(said["nested_offset"])
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten().long()
    numbers = tensors["weight.quant_map"].float()[codes]
    wide = most.float().repeat_interleave(int(said["blocksize"]))[: len(numbers)]
    return (numbers * wide).view(*said["shape"])
