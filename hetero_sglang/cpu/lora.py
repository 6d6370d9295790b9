"""LoRA adapters on the CPU. Of SGLang 0.5.17's LoRA backends only torch_native needs no GPU, and it too pins its
tensors, which needs a driver (srt/lora/layers.py:124, srt/lora/backend/torch_backend.py:225); under these hooks it does
not."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from hetero_sglang.cpu.platform import cpu_engine

BACKEND = "torch_native"
TARGETS = (
    "sglang.srt.lora.lora_manager.LoRAManager.init_state",
    "sglang.srt.lora.backend.torch_backend.TorchNativeLoRABackend.prepare_lora_batch",
)


class Unpinned(TorchFunctionMode):
    """Inside, torch pins nothing: tensors are made and stay in ordinary memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.pin_memory:
            return args[0]
        return func(*args, **{name: value for name, value in (kwargs or {}).items() if name != "pin_memory"})


def unpinned(orig: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """AROUND both of TARGETS."""
    if torch.cuda.is_available():
        return orig(*args, **kwargs)
    with Unpinned():
        return orig(*args, **kwargs)


def seams() -> list[tuple[str, Callable[..., Any], Any]]:
    """The hooks as (target, hook, kind) for SGLang's HookRegistry; none where the engine is not the CPU."""
    from sglang.srt.plugins.hook_registry import HookType

    return [(target, unpinned, HookType.AROUND) for target in TARGETS] if cpu_engine() else []
