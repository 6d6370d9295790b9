"""A strict stand-in for `sgl_kernel`, for machines where no build of it loads.

SGLang imports these names on the CPU path of a dense model and calls none of them, so each raises when called. Nothing
else exists here on purpose: a version of SGLang that needs more fails at its import line."""

from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from hetero_sglang.errors import HeteroError

SINCE_0_5_23 = ("assign_draft_cache_locs_contiguous_cpu",)
NAMES = (
    *SINCE_0_5_23,
    "assign_extend_cache_locs_cpu",
    "assign_req_to_token_pool_cpu",
    "build_tree_kernel_efficient_cpu",
    "copy_all_layer_kv_cache_cpu",
    "fill_accept_out_cache_loc_cpu",
    "fill_bonus_tokens_cpu",
    "verify_tree_greedy_cpu",
)


def build() -> ModuleType:
    """A module named `sgl_kernel` holding the names of `NAMES`; any other attribute is an AttributeError."""
    module = ModuleType("sgl_kernel", "Stand-in of hetero_sglang; no kernel is behind it.")
    module.__spec__ = ModuleSpec("sgl_kernel", loader=None)  # find_spec() refuses a module without one
    for name in NAMES:
        setattr(module, name, _raiser(name))
    return module


def _raiser(name: str) -> Any:
    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise HeteroError(
            f"sgl_kernel.{name} was called, but no build of sgl_kernel loads on this machine; turn off the "
            "feature that needs it (speculative decoding, most likely) or install a CPU build of sgl_kernel."
        )

    missing.__name__ = missing.__qualname__ = name
    return missing
