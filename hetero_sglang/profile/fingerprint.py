"""A cheap identity of a checkpoint: what it is, not how its files are stored."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.json_file import read_object
from hetero_sglang.profile.safetensors_header import read_header

# Numbers that decide what a KV head sees; names and dtypes of serving may change freely.
_CONFIG_FIELDS = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta", "sliding_window",
    "tie_word_embeddings",
)  # fmt: skip
_SAMPLES = 32
_SAMPLE_BYTES = 4096


def read_config(model_path: str | Path) -> dict[str, Any]:
    """The checkpoint's config.json. Raises HeteroError when there is none or it cannot be read."""
    path = Path(model_path) / "config.json"
    if not path.exists():
        raise HeteroError(f"there is no checkpoint at {model_path}: it has no config.json; give a local folder.")
    return read_object(path, "the configuration", strict=False)


def fingerprint(model_path: str | Path) -> str:
    """`sha256:...` over config fields, safetensors headers and 32 samples of 4 KiB per weight file.

    Raises HeteroError for a folder without a readable config.json."""
    config = read_config(model_path)
    digest = hashlib.sha256(json.dumps({k: config.get(k) for k in _CONFIG_FIELDS}, sort_keys=True).encode())
    for path in sorted(Path(model_path).glob("*.safetensors")):
        _add_weights(digest, path)
    return f"sha256:{digest.hexdigest()}"


def mismatch(about: Mapping[str, Any], name: str | Path, model_path: str | Path) -> str | None:
    """What to say where a profile, `name`, with the provenance `about` is of other weights than the checkpoint at
    `model_path`; None where it is of these, or does not say of which. Raises HeteroError as `fingerprint` does."""
    if about.get("fingerprint") in (None, fingerprint(model_path)):
        return None
    return f"{name} was made from other weights than {model_path}; profile this model."


def _add_weights(digest: hashlib._Hash, path: Path) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header, start = read_header(file, size)
            digest.update(json.dumps(header, sort_keys=True).encode())
            for sample in range(_SAMPLES):
                file.seek(start + (size - start) * sample // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    except (OSError, ValueError, RecursionError, struct.error) as error:
        raise HeteroError(f"{path} is not a whole safetensors file ({error}); download the checkpoint again.") from None
