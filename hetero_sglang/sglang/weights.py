"""What a checkpoint's quantised weights mean for a server: whether SGLang serves them here, and how its keys and
values are stored."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hetero_sglang.cpu.defaults import has_amx
from hetero_sglang.cpu.platform import cpu_engine
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.local_model import local_folder
from hetero_sglang.profile.quantisation import format_of, quantisation
from hetero_sglang.sglang.interface import Configuration
from hetero_sglang.sglang.version import installed

configuration: Configuration = installed("configuration")

_GPU_ALONE = ("bitsandbytes", "gguf")


def check_weights(args: Any) -> None:
    """Raises HeteroError where SGLang would load the weights and fail on them: before they are calibrated."""
    about = _about(args.model_path)
    name = _format(args, about)
    if name is None:
        return
    if cpu_engine() and args.device in (None, "cpu") and not has_amx():
        also = "" if name in _GPU_ALONE else " and on CPUs with AMX"
        raise HeteroError(
            f"{args.model_path} is to be served with weights quantised by {name}, which SGLang does on GPUs{also}; "
            f"serve the model that it was quantised from, or use a GPU."
        )
    if name == "bitsandbytes":
        if find_spec("bitsandbytes") is None:
            raise HeteroError("weights quantised by bitsandbytes need that package; run `pip install bitsandbytes`.")
        if args.load_format not in ("bitsandbytes", "dummy"):
            raise HeteroError(
                f"--load-format {args.load_format} does not read weights quantised by bitsandbytes; add --load-format "
                f"bitsandbytes."
            )
        if about == {}:  # model_loader/loader.py, BitsAndBytesModelLoader
            raise HeteroError(
                f"--quantization bitsandbytes of plain weights fails in SGLang's loader, which looks for parameters "
                f"that no layer has; serve a checkpoint of {args.model_path} that bitsandbytes has quantised."
            )


def _about(model_path: str) -> Mapping[str, Any] | None:
    """What a checkpoint says of how its weights are quantised, nothing of plain ones; None: not on this machine yet."""
    folder = None if Path(model_path).is_file() else local_folder(model_path)
    return None if folder is None else quantisation(folder)


def _format(args: Any, about: Mapping[str, Any] | None) -> str | None:
    """Of the weights as they are served; None: plain, or not on this machine yet."""
    if args.quantization == "unquant":
        return None
    if Path(args.model_path).is_file():
        return "gguf"
    return args.quantization or (format_of(about) if about else None)


def stored_rows(model_path: str) -> str:
    """`--kv-cache-dtype auto` of a model: `fp8_e4m3` where its checkpoint asks for 8 bits and SGLang heeds that
    (mem_cache/kv_cache_dtype.py), else auto."""
    about = _about(model_path) or {}
    return "fp8_e4m3" if format_of(about) in configuration.ROWS_BY_CHECKPOINT and _eight_bits(about) else "auto"


def _eight_bits(about: Mapping[str, Any]) -> bool:
    scheme = about.get("kv_cache_scheme")
    if isinstance(scheme, dict) and scheme.get("type") == "float" and scheme.get("num_bits") == 8:
        return True
    return str(about.get("kv_cache_quant_algo")).upper() == "FP8"
