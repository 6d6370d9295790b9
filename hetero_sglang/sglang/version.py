"""The SGLang version this adapter was tested with; any other is refused."""

import os
from importlib.metadata import version

from hetero_sglang.errors import HeteroError

TESTED = "0.5.17"
ALLOW = "HETERO_ALLOW_UNTESTED"


def check_version(found: str | None = None) -> None:
    """Raises HeteroError unless SGLang is the tested version or HETERO_ALLOW_UNTESTED=1 is set."""
    found = found or version("sglang")
    if found != TESTED and os.environ.get(ALLOW) != "1":
        raise HeteroError(
            f"SGLang {found} is installed but hetero_sglang is tested with {TESTED}; "
            f"run `pip install sglang=={TESTED}`, or set {ALLOW}=1 to try anyway."
        )
