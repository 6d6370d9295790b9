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

_GPU_ALONE = ("bitsandbytes", "gguf")
_CONFIGURATION = ["*.json", "*.py"]  # files of a checkpoint
AUTO = "auto"  # of --kv-cache-dtype: as the model's numbers are


def described(args: Any) -> Path | None:
    """The folder of the checkpoint that SGLang's arguments name, with its configuration at least, which is downloaded;
    None where that cannot be had, of which SGLang will say more."""
    model = Path(args.model_path)
    if model.is_dir() or model.is_file():
        return model if model.is_dir() else None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(args.model_path, revision=args.revision, allow_patterns=_CONFIGURATION))
    except Exception:  # of a dozen kinds
        return local_folder(args.model_path, args.revision)


def check_weights(args: Any, folder: Path | None) -> None:
    """Raises HeteroError where SGLang would load the weights and fail on them: before they are calibrated. `folder`: as
    `described`."""
    about = None if folder is None else quantisation(folder)
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


def _format(args: Any, about: Mapping[str, Any] | None) -> str | None:
    """Of the weights as they are served; None: plain, or not on this machine yet."""
    if args.quantization == "unquant":
        return None
    if Path(args.model_path).is_file():
        return "gguf"
    return args.quantization or (format_of(about) if about else None)


def stored_rows(folder: Path | None, args: Any = None) -> str:
    """What SGLang makes of `--kv-cache-dtype auto` once it has loaded a model: a format of 8 bits where its checkpoint
    asks for one and SGLang heeds that, else auto. `folder`: as `described`; `args`: SGLang's arguments, which may have
    its weights quantised. Raises HeteroError where SGLang cannot read how they are."""
    asked = None if args is None or args.quantization == "unquant" else args.quantization  # which SGLang passes over
    if folder is None or (asked is None and not quantisation(folder)):
        return AUTO
    import torch
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.mem_cache.kv_cache_dtype import configure_kv_cache_dtype
    from sglang.srt.model_loader.weight_utils import get_quant_config

    trusted, loaded = args is not None and args.trust_remote_code, torch.nn.Module()
    try:  # as the loader does (model_loader/loader.py), and then the runner (model_executor/model_runner.py)
        model = ModelConfig(str(folder), trust_remote_code=trusted, quantization=asked)
        loaded.quant_config = get_quant_config(model, LoadConfig(), {}) if model.quantization else None
    except Exception as error:  # of a dozen kinds
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise HeteroError(
            f"SGLang cannot read how the weights of {folder} are quantised ({said}); mend its configuration, or serve "
            f"the model that it was quantised from."
        ) from None
    resolved, _ = configure_kv_cache_dtype(
        server_args_kv_cache_dtype=AUTO, model=loaded, model_dtype=model.dtype, is_draft_worker=False, is_dflash=False,
        speculative_draft_attention_backend="",
    )  # fmt: skip
    return resolved or AUTO
