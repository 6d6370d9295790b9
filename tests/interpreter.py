"""Triton's interpreter at twice its speed: half of a kernel's time was its own bookkeeping.

Before each call of a jitted function, inner ones too, it looks through all members of its language to replace them; and
it computes each sum anew in 64 bits for an assertion that only debugging makes.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Protocol


class Scope(Protocol):
    def restore(self) -> None: ...


class Kept:
    """Replaced members stay so: nothing here runs a kernel that is not interpreted."""

    def restore(self) -> None:
        pass


def once(replace: Callable[[types.FunctionType], Scope]) -> Callable[[types.FunctionType], Scope]:
    """`replace`, called for the first function of each module alone."""
    seen: dict[int, dict[str, Any]] = {}  # the namespaces, held so that their identities are theirs alone

    def replaced(function: types.FunctionType) -> Scope:
        names = function.__globals__
        if id(names) not in seen:
            seen[id(names)] = names
            replace(function)
        return Kept()

    return replaced


def quicken() -> None:
    """Of another Triton, in which these are not found, the interpreter is left as it is."""
    try:
        from triton.runtime import interpreter
    except ModuleNotFoundError:
        return
    if hasattr(interpreter, "_patch_lang"):
        interpreter._patch_lang = once(interpreter._patch_lang)
    options = getattr(getattr(interpreter, "interpreter_builder", None), "options", None)
    if hasattr(options, "sanitize_overflow"):
        object.__setattr__(options, "sanitize_overflow", False)  # frozen
