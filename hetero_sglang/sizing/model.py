"""What sizes follow from in a checkpoint: shape, row size and bytes of weights. No weight is read."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetero_sglang.cache.sizes import Shape as Row
from hetero_sglang.calibration.checkpoint import Shape, read_shape
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.fingerprint import read_config
from hetero_sglang.profile.local_model import local_folder
from hetero_sglang.profile.safetensors_header import read_header

_SERVED = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float16"}  # dtype of a checkpoint -> SGLang's
_ITEM = 2  # bytes of one number, served
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Model:
    """`weights`: bytes of all of them as SGLang holds them, by what `weights_from` names."""

    name: str
    shape: Shape
    dtype: str
    weights: int
    weights_from: str
    item: int = _ITEM  # bytes of a number of K or V

    @property
    def row(self) -> Row:
        """A KV head's row."""
        return Row(self.shape.head_dim, self.shape.head_dim, self.item)


def read_model(path: str) -> Model:
    """A folder with config.json, or a Hugging Face name that is in the cache. Raises HeteroError for what is neither,
    or cannot be read."""
    folder = local_folder(path)
    if folder is None:
        raise HeteroError(
            f"{path} is no folder here and not in the Hugging Face cache; give a folder with a config.json, or "
            f"download the model first."
        )
    shape, config = read_shape(folder), read_config(folder)
    given = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    if given not in _SERVED:
        raise HeteroError(f"{folder}/config.json has dtype {given}; only {', '.join(_SERVED)} can be sized.")
    name = Path(path).name if Path(path).is_dir() else path
    return Model(name, shape, _SERVED[given], *_weights(folder, shape, config))


def _weights(folder: Path, shape: Shape, config: dict[str, Any]) -> tuple[int, str]:
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return sum(map(_file_bytes, files)), "the headers of its safetensors files"
    if config.get("quantization_config"):
        raise HeteroError(
            f"{folder} is quantised, so its weights cannot be told from config.json; give a folder with its "
            f"safetensors files."
        )
    return _ITEM * _parameters(folder, shape, config), "config.json, as no safetensors files are there"


def _file_bytes(path: Path) -> int:
    try:
        with path.open("rb") as file:
            header, _ = read_header(file, path.stat().st_size)
        return sum(_tensor_bytes(tensor) for tensor in header.values())
    except (OSError, ValueError, TypeError, KeyError, RecursionError, struct.error) as error:
        said = "is no JSON" if isinstance(error, json.JSONDecodeError) else error
        raise HeteroError(f"{path} is not a whole safetensors file ({said}); download the checkpoint again.") from None


def _tensor_bytes(tensor: dict[str, Any]) -> int:
    """As served: a quantised tensor stays as it is, any other is cast to the model's dtype."""
    start, end = tensor["data_offsets"]
    return _ITEM * math.prod(tensor["shape"]) if tensor["dtype"] in _FLOATS else end - start


def _parameters(folder: Path, shape: Shape, config: dict[str, Any]) -> int:
    """Numbers in all matrices; norms and biases are left out, less than a thousandth."""
    try:
        hidden, vocabulary = int(config["hidden_size"]), int(config["vocab_size"])
        experts = int(config.get("num_experts") or config.get("num_local_experts") or 1)
        inner = int((experts > 1 and config.get("moe_intermediate_size")) or config["intermediate_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise HeteroError(f"{folder}/config.json lacks a usable {error}; download the checkpoint again.") from None
    attention = hidden * shape.head_dim * (2 * shape.num_query_heads + 2 * shape.num_kv_heads)
    router = hidden * experts if experts > 1 else 0
    tables = 1 if config.get("tie_word_embeddings", config.get("model_type") == "gemma") else 2
    return shape.num_layers * (attention + 3 * hidden * inner * experts + router) + tables * hidden * vocabulary
