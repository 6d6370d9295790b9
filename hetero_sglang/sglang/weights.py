"""What a checkpoint's quantised weights mean for a server: how its keys and values are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hetero_sglang.profile.local_model import local_folder
from hetero_sglang.profile.quantisation import format_of, quantisation
from hetero_sglang.sglang.interface import Configuration
from hetero_sglang.sglang.version import installed

configuration: Configuration = installed("configuration")


def stored_rows(model_path: str) -> str:
    """`--kv-cache-dtype auto` of a model: `fp8_e4m3` where its checkpoint asks for 8 bits and SGLang heeds that
    (mem_cache/kv_cache_dtype.py), else auto."""
    folder = local_folder(model_path)
    about = {} if folder is None else quantisation(folder)
    return "fp8_e4m3" if format_of(about) in configuration.ROWS_BY_CHECKPOINT and _eight_bits(about) else "auto"


def _eight_bits(about: Mapping[str, Any]) -> bool:
    scheme = about.get("kv_cache_scheme")
    if isinstance(scheme, dict) and scheme.get("type") == "float" and scheme.get("num_bits") == 8:
        return True
    return str(about.get("kv_cache_quant_algo")).upper() == "FP8"
