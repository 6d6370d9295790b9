"""How formats round a matrix and lay out what is left of it: tensors of a checkpoint by their names' last part."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import torch

Tensors = dict[str, torch.Tensor]
Packing = Callable[[torch.Tensor], Tensors]  # of a weight [out, in], float32

GROUP = 64  # input dimensions that share a scale
BLOCK = 128  # rows and columns that share one, of fp8 in blocks
NF4_BLOCK = 64  # numbers that share one, row by row
E4M3 = torch.float8_e4m3fn
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of 8 columns a nibble holds, lowest nibble first
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def fp8(weight: torch.Tensor, static: bool = False) -> Tensors:
    """A scale for the whole matrix; `static`: and a fixed one for what it is multiplied with."""
    scale = weight.abs().max() / torch.finfo(E4M3).max
    found = {"weight": (weight / scale).to(E4M3), "weight_scale": scale}
    return {**found, "input_scale": torch.tensor(0.25)} if static else found


def fp8_channels(weight: torch.Tensor) -> Tensors:
    """A scale for each row."""
    scale = weight.abs().amax(1, keepdim=True) / torch.finfo(E4M3).max  # [out, 1]
    return {"weight": (weight / scale).to(E4M3), "weight_scale": scale}


def fp8_blocks(weight: torch.Tensor) -> Tensors:
    """A scale for each block of BLOCK x BLOCK."""
    scale = torch.nn.functional.max_pool2d(weight.abs()[None], BLOCK, ceil_mode=True)[0] / torch.finfo(E4M3).max
    wide = scale.repeat_interleave(BLOCK, 0)[: weight.shape[0]].repeat_interleave(BLOCK, 1)[:, : weight.shape[1]]
    return {"weight": (weight / wide).to(E4M3), "weight_scale_inv": scale}


def int8(weight: torch.Tensor) -> Tensors:
    """A scale for each row."""
    scale = weight.abs().amax(1, keepdim=True) / 127  # [out, 1]
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}


def awq(weight: torch.Tensor) -> Tensors:
    """4 bits with a zero of their own in each group."""
    groups = weight.t().unflatten(0, (-1, GROUP))  # [groups, GROUP, out]
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = ((high - low) / 15).half()  # [groups, out]
    zeros = (-low / scales.float()).round().clamp(0, 15)
    codes = ((groups / scales.float()[:, None]).round() + zeros[:, None]).clamp(0, 15).flatten(0, 1)  # [in, out]
    return {"qweight": _columns(codes, AWQ_ORDER), "qzeros": _columns(zeros, AWQ_ORDER), "scales": scales}


def gptq(weight: torch.Tensor, bits: int = 4, ordered: bool = False) -> Tensors:
    """Symmetric; `ordered`: groups of scattered columns, as where GPTQ takes them by their activations."""
    columns, zero, per_word = weight.shape[1], 1 << (bits - 1), 32 // bits
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(7)) if ordered else torch.arange(columns)
    of_column = torch.empty(columns, dtype=torch.int32)
    of_column[order] = (torch.arange(columns) // GROUP).int()
    groups = weight.t()[order].unflatten(0, (-1, GROUP))  # [groups, GROUP, out]
    scales = (groups.abs().amax(1) / (zero - 1)).half()  # [groups, out]
    codes = ((weight.t() / scales.float()[of_column.long()]).round() + zero).clamp(0, 2 * zero - 1)  # [in, out]
    kept = torch.full(scales.shape, zero - 1)  # this format keeps zeros less one
    return {
        "qweight": _words(codes.t(), per_word).t().contiguous(),
        "qzeros": _words(kept, per_word),
        "scales": scales,
        "g_idx": of_column,
    }


def int4(weight: torch.Tensor) -> Tensors:
    """compressed-tensors' pack-quantized: symmetric, 4 bits."""
    groups = weight.unflatten(1, (-1, GROUP))  # [out, groups, GROUP]
    scale = (groups.abs().amax(2) / 7).bfloat16()  # [out, groups]
    codes = ((groups / scale.float()[..., None]).round() + 8).clamp(0, 15).flatten(1)  # [out, in]
    return {"weight_packed": _words(codes, 8), "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}


def nf4(weight: torch.Tensor) -> Tensors:
    """bitsandbytes' 4 bits, scales in float32."""
    blocks = weight.reshape(-1, NF4_BLOCK)
    most = blocks.abs().amax(1)
    codes = torch.tensor(NF4)
    edges = (codes[1:] + codes[:-1]) / 2
    found = torch.bucketize(blocks / most[:, None], edges).flatten().to(torch.uint8)
    state = {"quant_type": "nf4", "blocksize": NF4_BLOCK, "dtype": "bfloat16", "shape": list(weight.shape)}
    return {
        "weight": (found[::2] << 4 | found[1::2])[:, None],
        "weight.absmax": most,
        "weight.quant_map": codes,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def _words(codes: torch.Tensor, per_word: int) -> torch.Tensor:
    """Of a row's codes [rows, n], `per_word` in each int32, the first in its lowest bits: [rows, n / per_word]."""
    shifts = torch.arange(per_word) * (32 // per_word)
    words = (codes.long().unflatten(1, (-1, per_word)) << shifts).sum(-1)
    return (words - ((words >> 31) << 32)).int()  # the highest bit is the sign


def _columns(codes: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    return _words(codes.unflatten(1, (-1, 8))[..., list(order)].flatten(1), 8)


def _compressed(name: str, weights: dict[str, object], activations: dict[str, object] | None) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def _numbers(kind: str, bits: int, strategy: str, **more: object) -> dict[str, object]:
    return {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False, **more}


_GPTQ = {"quant_method": "gptq", "group_size": GROUP, "sym": True, "lm_head": False, "checkpoint_format": "gptq"}
# Format -> how a matrix is packed, and what config.json says of it.
FORMATS: dict[str, tuple[Packing, dict[str, object]]] = {
    "fp8": (fp8, {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "fp8-static": (partial(fp8, static=True), {"quant_method": "fp8", "activation_scheme": "static"}),
    "fp8-blocks": (
        fp8_blocks,
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]},
    ),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}),
    "gptq": (gptq, {**_GPTQ, "bits": 4, "desc_act": False}),
    "gptq-ordered": (partial(gptq, ordered=True), {**_GPTQ, "bits": 4, "desc_act": True}),
    "gptq-8": (partial(gptq, bits=8), {**_GPTQ, "bits": 8, "desc_act": False}),
    "compressed-int8": (
        int8,
        _compressed(
            "int-quantized", _numbers("int", 8, "channel"), {**_numbers("int", 8, "token"), "dynamic": True}
        ),
    ),
    "compressed-int4": (int4, _compressed("pack-quantized", _numbers("int", 4, "group", group_size=GROUP), None)),
    "compressed-fp8": (
        fp8_channels,
        _compressed(
            "float-quantized", _numbers("float", 8, "channel"), {**_numbers("float", 8, "token"), "dynamic": True}
        ),
    ),
    "nf4": (
        nf4,
        {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_use_double_quant": False,
            "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": ["lm_head"],
        },
    ),
}  # fmt: skip
