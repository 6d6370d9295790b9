"""Arguments as a server has them once SGLang has settled its defaults, which some versions do when they are made."""

from __future__ import annotations

from typing import Any

from hetero_sglang.sglang.args import HeteroServerArgs
from hetero_sglang.sglang.interface import Configuration
from hetero_sglang.sglang.version import installed

configuration: Configuration = installed("configuration")


def settled_args(**flags: Any) -> HeteroServerArgs:
    """Raises HeteroError for what is refused."""
    made = HeteroServerArgs(**flags)
    configuration.settle(made)
    return made
