"""Seams in SGLang's own source, where that is patched (patches/): each is a function with room for one hook.

SGLang's modules import this one while they are being imported: it imports none of them."""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]
ARGUMENTS = "hetero_sglang.sglang.args"

plain: dict[str, Function] = {}  # target -> SGLang's function, of every seam met so far
hooked: dict[str, Function] = {}  # and what is called there instead, once a hook has been put in


def seam(function: Function, module: str | None = None) -> Function:
    """Decorator: a function of SGLang as a seam, of the `module` that imported it if that is not its own.

    The first seam that a process comes to puts the hooks in."""
    target = f"{module or function.__module__}.{function.__qualname__}"
    plain[target] = function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _enter()
        return hooked.get(target, function)(*args, **kwargs)

    return call


def arguments(base: type) -> type:
    """The class that takes the place of SGLang's ServerArgs, its `base`, as soon as that is there."""
    sys.modules.pop(ARGUMENTS, None)  # half imported, if it was its import that led to SGLang's: now it can be whole
    return importlib.import_module(ARGUMENTS).HeteroServerArgs


@functools.cache
def _enter() -> None:
    importlib.import_module("hetero_sglang.sglang.hooks").enter_process()
