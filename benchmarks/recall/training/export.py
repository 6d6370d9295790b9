"""Writing a trained model as a Hugging Face Llama checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from hetero_sglang.errors import HeteroError

from .model import RecallModel
from .shape import HEAD_DIM, Shape

MAX_POSITIONS = 65536  # longer prompts than those trained on may be sent
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_SPECIAL = ("<s>", "</s>", "<pad>")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def read_tokenizer(folder: str | Path) -> dict[str, bytes]:
    """A tokenizer's files by name. Raises HeteroError if the folder lacks one."""
    folder = Path(folder)
    if missing := [name for name in TOKENIZER_FILES if not (folder / name).is_file()]:
        raise HeteroError(f"There is no {missing[0]} in {folder}: pass a folder with the recall model's tokenizer.")
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES}


def check_size(shape: Shape, tokenizer: dict[str, bytes], mebibytes: float) -> None:
    """Raise HeteroError, before a training is wasted, if the checkpoint would be larger than allowed."""
    size = (2 * shape.parameters + sum(map(len, tokenizer.values())) + 65536) / 2**20  # card, headers and so on
    if size > mebibytes:
        raise HeteroError(
            f"The checkpoint would have {size:.1f} MiB, more than {mebibytes:g}: pass a smaller --ffn or --layers, or "
            "raise --max-mib."
        )


def export(folder: str | Path, model: RecallModel, tokenizer: dict[str, bytes]) -> None:
    """Write weights in bfloat16, config and tokenizer into `folder`, which is made if it is not there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {_published(name): w.detach().to("cpu", torch.bfloat16) for name, w in model.named_parameters()}
    scratch = folder / "model.tmp"
    scratch.write_bytes(save(weights, metadata={"format": "pt"}))
    scratch.replace(folder / "model.safetensors")  # never half-written
    ids = {word["content"]: word["id"] for word in json.loads(tokenizer["tokenizer.json"])["added_tokens"]}
    (folder / "config.json").write_text(json.dumps(config(model.shape, [ids[word] for word in _SPECIAL]), indent=1))
    for name, content in tokenizer.items():
        (folder / name).write_bytes(content)


def config(shape: Shape, special: list[int]) -> dict[str, Any]:
    """Hugging Face's config.json; `special` are the ids of bos, eos and padding."""
    bos, eos, pad = special
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.query_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.theta},
        "vocab_size": shape.vocabulary,
        "hidden_act": "silu",
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }


def _published(name: str) -> str:
    """A parameter's name in Hugging Face checkpoints."""
    parts = name.split(".")
    if parts[0] == "lm_head":
        return name
    if parts[0] == "layers":
        group = "self_attn" if parts[2] in _ATTENTION else "mlp" if parts[2] in _MLP else None
        parts = [*parts[:2], *([group] if group else []), *parts[2:]]
    return ".".join(["model", *parts])
