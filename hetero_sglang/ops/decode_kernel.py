"""Which decode kernel a flag's word means."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from hetero_sglang.ops.base import DecodeKernel
from hetero_sglang.ops.flashinfer.decode import FlashInferDecode
from hetero_sglang.ops.triton.attend import TritonDecode
from hetero_sglang.ops.triton.store import LayerBuffers

if TYPE_CHECKING:
    from hetero_sglang.ops.step import DecodeStep

AUTO = "triton"  # the faster of the two in benchmarks/results/kernels.json decides


def decode_kernel(word: str, layers: list[LayerBuffers]) -> Callable[[DecodeStep], DecodeKernel]:
    """What makes a step's kernel; `word`: auto, flashinfer or triton."""
    word = AUTO if word == "auto" else word
    return partial(FlashInferDecode, layers=layers) if word == "flashinfer" else TritonDecode
