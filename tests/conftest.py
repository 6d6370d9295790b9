"""What holds for all tests: Triton's interpreter where no GPU is found, no deadlines, and who shares a process."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

try:
    from hypothesis import settings
except ModuleNotFoundError:  # the kernels' tests need none of it
    pass
else:
    settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
    settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)  # ahead of xdist, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side (`-n`), one process has all real servers, which want the machine's cores, and begins with them; the
    others share what is left by file. Real servers in two processes would take each other's ports.
    """
    items.sort(key=lambda item: item.get_closest_marker("server") is None)
    for item in items:
        group = "server" if item.get_closest_marker("server") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
