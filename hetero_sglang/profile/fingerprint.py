"""A cheap identity of a checkpoint: what it is, not how its files are stored."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from hetero_sglang.errors import HeteroError

# Numbers that decide what a KV head sees; names and dtypes of serving may change freely.
_CONFIG_FIELDS = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta", "sliding_window",
    "tie_word_embeddings",
)  # fmt: skip
_SAMPLES = 32
_SAMPLE_BYTES = 4096


def read_config(model_path: str | Path) -> dict:
    """The checkpoint's config.json. Raises HeteroError when there is none or it cannot be read."""
    path = Path(model_path) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HeteroError(
            f"there is no checkpoint at {model_path}: it has no config.json; give a local folder."
        ) from None
    except (OSError, ValueError) as error:
        raise HeteroError(f"{path} cannot be read ({error}); give a local Hugging Face checkpoint.") from None
    if not isinstance(config, dict):
        raise HeteroError(f"{path} does not hold an object; give a local Hugging Face checkpoint.")
    return config


def fingerprint(model_path: str | Path) -> str:
    """`sha256:...` over config fields, safetensors headers and 32 samples of 4 KiB per weight file.

    Raises HeteroError for a folder without a readable config.json."""
    config = read_config(model_path)
    digest = hashlib.sha256(json.dumps({k: config.get(k) for k in _CONFIG_FIELDS}, sort_keys=True).encode())
    for path in sorted(Path(model_path).glob("*.safetensors")):
        _add_weights(digest, path)
    return f"sha256:{digest.hexdigest()}"


def _add_weights(digest: hashlib._Hash, path: Path) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError(f"its header claims {length} bytes of {size}")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            digest.update(json.dumps(header, sort_keys=True).encode())
            start = 8 + length
            for sample in range(_SAMPLES):
                file.seek(start + (size - start) * sample // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    except (OSError, ValueError, struct.error) as error:
        raise HeteroError(f"{path} is not a whole safetensors file ({error}); download the checkpoint again.") from None
