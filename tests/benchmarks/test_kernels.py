"""The measured attention of the kernel is the reference's; small, and interpreted where no GPU is."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks import kernels
from hetero_sglang.ops import reference, triton
from hetero_sglang.ops.triton.work import DecodeShape


@pytest.mark.parametrize("stored", kernels.STORED)
def test_a_case_attends_as_the_reference_does(monkeypatch: pytest.MonkeyPatch, stored: str) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setattr(kernels, "DEVICE", "cpu")
        monkeypatch.setattr(kernels, "DTYPE", torch.float32)  # interpreted, dots of bfloat16 are wrong
    torch.manual_seed(0)
    case = kernels.Case("small", kernels.settings_of(kernels.profile_of(2, layers=1), 0.6), 2, 1100)
    setup = kernels.Setup(case, kernels.STORED[stored] if stored != "bfloat16" else kernels.DTYPE)
    assert 0 < setup.kept < 2 * 1100 * 6 and setup.layers == 1
    made = (reference.AttendStep, partial(triton.AttendStep, shape=DecodeShape(block=64)))
    wanted, found = (setup.attend(setup.step(kernel))()[0].float() for kernel in made)
    assert (found - wanted).norm() < 1e-2 * wanted.norm()
