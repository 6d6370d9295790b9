"""Which quantised weights calibration reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.quantisation import format_of

READABLE = ("fp8", "awq", "gptq", "compressed-tensors", "bitsandbytes", "modelopt")


def check_readable(model_path: str | Path, about: Mapping[str, Any]) -> None:
    """Raises HeteroError for weights of a format that is not read; `about` is what the checkpoint says of them."""
    name, algorithm = format_of(about), str(about.get("quant_algo") or "FP8").upper()
    if name == "modelopt" and algorithm != "FP8":
        raise unreadable(model_path, f"which are quantised by modelopt as {algorithm}")
    if name not in READABLE:
        raise unreadable(model_path, f"which are quantised by {name}")


def unreadable(model_path: str | Path, why: str) -> HeteroError:
    """What to raise where a profile cannot be made of these weights."""
    return HeteroError(
        f"calibration cannot read the weights of {model_path}, {why} (it reads {', '.join(READABLE)}, of 2, 4 or 8 "
        f"bits); make a profile of the model that they were quantised from and give it with `--hetero-profile FILE`."
    )
