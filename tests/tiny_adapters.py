"""LoRA adapters of random weights in peft's format, for a checkpoint's attention projections."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.launch import RECALL
from hetero_sglang.profile.files import load_profile, save_profile

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def write_adapter(folder: Path, seed: int, rank: int = 4, targets: Sequence[str] = TARGETS, std: float = 0.05) -> Path:
    """Of the recall model: small enough that it still answers, large enough that what it says next is the adapter's."""
    config = json.loads((RECALL / "config.json").read_text())
    hidden, dim, inner = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    sizes = {
        "q_proj": (hidden, heads), "k_proj": (hidden, kv_heads), "v_proj": (hidden, kv_heads),
        "o_proj": (heads, hidden), "down_proj": (inner, hidden),
    }  # fmt: skip
    random, tensors = torch.Generator().manual_seed(seed), {}
    for layer in range(config["num_hidden_layers"]):
        for target in targets:
            part = "mlp" if target == "down_proj" else "self_attn"
            name = f"base_model.model.model.layers.{layer}.{part}.{target}"
            taken, given = sizes[target]
            for end, shape in (("A", (rank, taken)), ("B", (given, rank))):
                values = std * torch.randn(shape, generator=random)
                tensors[f"{name}.lora_{end}.weight"] = values.bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": rank, "lora_alpha": 2 * rank}
    (folder / "adapter_config.json").write_text(json.dumps({**about, "target_modules": list(targets)}))
    return folder


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Gone when the tests are."""
    made = tempfile.TemporaryDirectory(prefix="hetero-adapters-")
    for seed, name in enumerate("ab"):
        write_adapter(Path(made.name, name), seed)
    profile = load_profile(RECALL / "hetero_profile.json")
    assert profile.measurements is not None
    profile.measurements.stability[:] = profile.measurements.stability[:, ::-1]
    save_profile(profile, Path(made.name, "a.json"))
    return made


def lora_paths() -> list[str]:
    """Of two adapters, as `--lora-paths` takes them."""
    return [f"{name}={_folder().name}/{name}" for name in "ab"]


def lora_profile() -> list[str]:
    """Of one of them, as `--hetero-lora-profile` takes it."""
    return [f"a={_folder().name}/a.json"]
