"""What holds for all tests: Triton's interpreter where no GPU is found, and no deadlines, shared servers."""

from __future__ import annotations

import os

import torch
from interpreter import quicken

pytest_plugins = ["sharing", "pytester"]

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    quicken()

try:
    from hypothesis import settings
except ModuleNotFoundError:  # the kernels' tests need none of it
    pass
else:
    settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
    settings.load_profile("untimed")
