"""What a checkpoint says of weights that it holds quantised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hetero_sglang.profile.fingerprint import read_config
from hetero_sglang.profile.json_file import read_object


def quantisation(model_path: str | Path) -> dict[str, Any]:
    """`quantization_config` of config.json, or what ModelOpt writes in a file of its own; empty where weights are
    plain. Raises HeteroError for files that cannot be read."""
    config, own = read_config(model_path), Path(model_path) / "hf_quant_config.json"
    said = config.get("quantization_config") or config.get("compression_config")
    if isinstance(said, dict) and said:
        return {"quant_method": "modelopt", **said} if "quant_algo" in said else said
    if own.exists():
        inner = read_object(own, "the configuration", strict=False).get("quantization")
        if isinstance(inner, dict) and inner:
            return {**inner, "quant_method": "modelopt"}
    return {}


def format_of(about: Mapping[str, Any]) -> str:
    """Its name, as SGLang and Transformers have it: `quant_method`."""
    return str(about.get("quant_method") or "unknown").lower().replace("_", "-")
