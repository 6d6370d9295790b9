"""Model shapes for speed measurements: a configuration alone, run with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-12,  # below the square of random weights
    "rope_theta": 500000.0,
    "vocab_size": 128256,
    "hidden_act": "silu",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def write(folder: Path, config: dict[str, Any] = LLAMA_8B) -> Path:
    """Make `folder` a checkpoint without weights: for --load-format dummy --skip-tokenizer-init."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def kv_bytes_per_token(config: dict[str, Any] = LLAMA_8B) -> int:
    """Dense K and V of one token over all layers, bf16."""
    return 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]


def weight_bytes(config: dict[str, Any] = LLAMA_8B) -> int:
    """What a decode step reads of the weights, bf16: everything but the embedding table."""
    hidden, inner, layers = (config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, kv_heads, dim = (config[n] for n in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    layer = hidden * dim * (2 * heads + 2 * kv_heads) + 3 * hidden * inner
    return 2 * (layers * layer + hidden * config["vocab_size"])


def parameter_bytes(config: dict[str, Any] = LLAMA_8B) -> int:
    """The checkpoint's matrices, bf16: `weight_bytes` and the embedding table."""
    return weight_bytes(config) + 2 * config["hidden_size"] * config["vocab_size"]
