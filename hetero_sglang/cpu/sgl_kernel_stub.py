"""A strict stand-in for `sgl_kernel`, for machines where no build of it loads.

SGLang imports these names on the CPU path of a dense model. What speculative decoding calls is there in torch; of the
others it calls none, so each raises when called. Nothing else exists here on purpose: a version of SGLang that needs
more fails at its import line."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from hetero_sglang.cpu import speculation
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
SPECULATIVE = ("reconstruct_indices_from_tree_mask",)  # of sgl_kernel.speculative


def install() -> None:
    """Put the stand-in where SGLang imports it from."""
    sys.modules["sgl_kernel"] = build()
    sys.modules["sgl_kernel.speculative"] = speculative()


def build() -> ModuleType:
    """A module named `sgl_kernel` holding the names of `NAMES`; any other attribute is an AttributeError."""
    return _module("sgl_kernel", NAMES)


def speculative() -> ModuleType:
    """A module named `sgl_kernel.speculative`, likewise."""
    return _module("sgl_kernel.speculative", SPECULATIVE)


def _module(name: str, functions: tuple[str, ...]) -> ModuleType:
    module = ModuleType(name, "Stand-in of hetero_sglang; no kernel is behind it.")
    module.__spec__ = ModuleSpec(name, loader=None)  # find_spec() refuses a module without one
    for each in functions:
        setattr(module, each, getattr(speculation, each, None) or _raiser(each))
    return module


def _raiser(name: str) -> Any:
    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise HeteroError(
            f"sgl_kernel.{name} was called, but no build of sgl_kernel loads on this machine; turn off the "
            "feature that needs it or install a CPU build of sgl_kernel."
        )

    missing.__name__ = missing.__qualname__ = name
    return missing
