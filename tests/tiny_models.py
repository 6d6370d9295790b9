"""Checkpoints of random weights: two layers, 4 query and 2 KV heads, with the recall model's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

NAMES = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "phi3": "Phi3", "olmo2": "Olmo2",
    "gemma": "Gemma", "granite": "Granite", "mixtral": "Mixtral", "qwen3_moe": "Qwen3Moe",
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    "phi3": {"sliding_window": None, "pad_token_id": 2, "original_max_position_embeddings": 4096},
}


def write_checkpoint(folder: Path, family: str, tokenizer_from: Path, **changes: Any) -> Path:
    """A model of a family, with `changes` of its configuration."""
    import transformers

    sizes = {
        "vocab_size": 2944,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.2,  # sharp enough that attention is not uniform
    }
    config = getattr(transformers, NAMES[family] + "Config")(**sizes | OWN.get(family, {}) | changes)
    torch.manual_seed(7)
    model = getattr(transformers, NAMES[family] + "ForCausalLM")(config)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / name, folder / name)
    return folder
