"""The SGLang versions this adapter was tested with; any other is refused. Each has a folder here (interface.py)."""

import os
import re
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

from hetero_sglang.errors import HeteroError

TESTED = ("0.5.17", "0.5.23")  # the older first
ALLOW = "HETERO_ALLOW_UNTESTED"
PATCHED = "sglang.srt.hetero"  # a module that patched source has (patches/)


def check_version(found: str | None = None) -> None:
    """Raises HeteroError unless SGLang is of a tested version or HETERO_ALLOW_UNTESTED=1 is set."""
    found = found or version("sglang")
    if found not in TESTED and os.environ.get(ALLOW) != "1":
        commands = " or ".join(f"`pip install sglang=={each}`" for each in TESTED)
        raise HeteroError(
            f"SGLang {found} is installed but hetero_sglang is tested with {' and '.join(TESTED)}; run {commands}, or "
            f"set {ALLOW}=1 to try anyway."
        )


def nearest(found: str) -> str:
    """The tested version that one is most like: the latest that is not newer, or the oldest."""
    older = [each for each in TESTED if _numbers(each) <= _numbers(found)]
    return older[-1] if older else TESTED[0]


@cache
def release() -> str:
    """The tested version whose internals the installed SGLang is taken to have."""
    patched = sys.modules.get(PATCHED)
    return nearest(patched.RELEASE if patched else version("sglang"))


def folder(tested: str) -> str:
    """The package with what a tested version has of its own."""
    return f"hetero_sglang.sglang.v{tested.replace('.', '_')}"


def installed(name: str) -> Any:
    """The installed version's module of that name, one of those in interface.py."""
    return import_module(f"{folder(release())}.{name}")


def _numbers(text: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", text)[:3]]
