"""Which operations and which decode kernel a device gets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hetero_sglang.ops.base import DecodeKernel, LayerBuffers

if TYPE_CHECKING:
    from hetero_sglang.ops.step import DecodeStep


def operations(device: torch.device) -> Any:
    """The module with the names of `base.NAMES`. Triton is imported only where it is used."""
    if device.type == "cuda":
        from hetero_sglang.ops import triton

        return triton
    from hetero_sglang.ops import reference

    return reference


def decode_kernel(word: str, ops: Any, layers: list[LayerBuffers]) -> Callable[[DecodeStep], DecodeKernel]:
    """What makes a step's kernel; `word`: flashinfer, or the operations' own (the faster in results/kernels.json)."""
    if word != "flashinfer":
        return ops.AttendStep
    from hetero_sglang.ops.flashinfer.decode import FlashInferDecode

    return partial(FlashInferDecode, layers=layers)
