"""A checkpoint's weights by name, none of them quantised any more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from hetero_sglang.calibration.packed import awq, compressed, gptq, scaled, table
from hetero_sglang.calibration.packed.readable import unreadable
from hetero_sglang.profile.quantisation import format_of

Reader = Callable[[Mapping[str, torch.Tensor], Mapping[str, Any]], torch.Tensor]

WORDS: dict[str, Reader] = {"awq": awq.plain, "gptq": gptq.plain}  # who reads `qweight`
_MARKS = ("weight_packed", "weight.absmax", "SCB", "weight_scale", "weight_scale_inv")
_STATE = "weight.quant_state."
_ENDS = (
    *_MARKS, "qweight", "qzeros", "scales", "g_idx", "weight", "weight_shape", "weight_zero_point", "weight_g_idx",
    "weight_format", "input_scale", "input_zero_point", "weight.quant_map", "weight.nested_absmax",
    "weight.nested_quant_map",
)  # fmt: skip
_OF_ROWS = ("k_scale", "v_scale", "kv_scale", "q_scale")  # of what is kept or multiplied, not of weights


def plain_state(
    model_path: str | Path, about: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """All of them in host memory as `dtype`, reckoned on `device`. Raises HeteroError for what cannot be read."""
    with ExitStack() as opened:
        files = [opened.enter_context(safe_open(path, "pt")) for path in sorted(Path(model_path).glob("*.safetensors"))]
        if not files:
            raise unreadable(model_path, "which lie in no safetensors files")
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        try:
            return dict(_plain(where, about, device, dtype))
        except KeyError as error:
            raise unreadable(model_path, f"of which {error} is not there") from None
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:  # RuntimeError: shapes that do not fit each other
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise unreadable(model_path, f"as {reason[0].lower()}{reason[1:]}") from None


def _plain(
    where: Mapping[str, Any], about: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    modules: dict[str, dict[str, str]] = defaultdict(dict)  # a module's name -> its tensors' names by their ends
    for name in where:
        stem, end = _parted(name)
        modules[stem][end] = name
    for stem, names in modules.items():
        reader = _reader(names, about)
        if reader is not None:
            packed = {end: where[name].get_tensor(name).to(device) for end, name in names.items()}
            yield f"{stem}.weight", reader(packed, about).to(dtype).cpu().contiguous()
            continue
        for end, name in names.items():
            if end not in _OF_ROWS:
                tensor = where[name].get_tensor(name)
                yield name, tensor.to(dtype) if tensor.is_floating_point() else tensor


def _parted(name: str) -> tuple[str, str]:
    """A tensor's module and what it is there; the longest end that is known."""
    if _STATE in name:
        at = name.index(_STATE)
        return name[:at].rstrip("."), name[at:]
    fits = [end for end in (*_ENDS, *_OF_ROWS) if name.endswith(f".{end}")]
    end = max(fits, key=len, default="")
    return (name[: -len(end) - 1], end) if end else (name, "")


def _reader(names: Mapping[str, str], about: Mapping[str, Any]) -> Reader | None:
    """Who reads a module with these tensors; None: they are plain."""
    if "qweight" in names:
        return WORDS[format_of(about)]
    if "weight_packed" in names:
        return compressed.plain
    if "weight.absmax" in names:
        return table.plain
    return scaled.plain if any(mark in names for mark in _MARKS) else None
