"""A checkpoint's linear layers, all but the language model's head, in another format: files that any server reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.weights.packing import FORMATS

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def quantise(model: Path, name: str, out: Path) -> Path:
    """`out` with the checkpoint `model` in the format of that name, without its head profile."""
    packing, about = FORMATS[name]
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((model / "config.json").read_text())
    half = about["quant_method"] in ("awq", "gptq")  # their kernels' own
    dtype = "float16" if half else "bfloat16"
    (out / "config.json").write_text(
        json.dumps({**config, "torch_dtype": dtype, "quantization_config": about}, indent=1)
    )
    found: dict[str, torch.Tensor] = {}
    for tensor, weight in load_file(model / "model.safetensors").items():
        if tensor.endswith("_proj.weight"):
            packed = packing(weight.float())
            stem = tensor.removesuffix("weight")
            found |= {f"{stem}{end}": each.contiguous() for end, each in packed.items()}
        else:
            found[tensor] = weight.half() if half else weight.bfloat16()
    save_file(found, out / "model.safetensors", {"format": "pt"})
    for each in TOKENIZER:
        if (model / each).exists():
            shutil.copy(model / each, out / each)
    return out
