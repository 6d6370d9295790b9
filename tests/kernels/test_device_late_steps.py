"""Tokens that go on with a later pass, with the kernels: every byte is as if none had waited."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import engine_of, make_cache, make_settings, random_profile
from test_device_engine import DEVICE
from test_late_steps import check
from test_lazy_heads import Run, lazy_settings

from hetero_sglang.ops import triton

SLOW = pytest.mark.slow


@pytest.mark.parametrize("run", [1, pytest.param(4, marks=SLOW)])
@pytest.mark.parametrize("ahead", [False, pytest.param(True, marks=SLOW)])
def test_heads_with_an_index(run: Run, ahead: bool) -> None:
    check(lazy_settings(1, run), [2], ahead, [150], 1, triton, DEVICE)


@SLOW
def test_heads_that_follow_pivots() -> None:
    pivots = {"drift_threshold": 1.0, "monitor_interval": 1, "anchor_interval": 0, "dense_below": 140}
    check(make_settings(random_profile(4), **pivots), [2], False, [150, 141], 2, triton, DEVICE)


def test_their_steps_look_for_rows_in_one_workspace() -> None:
    """They plan apart: where tokens lie, and which heads are to be refilled."""
    cache = make_cache(lazy_settings(1, 1), device=DEVICE)
    engine = engine_of(cache, triton)
    own = engine.eager(4, 512)
    engine.late.grow(3, 4, 256)
    steps = [own, *engine.late.steps]
    for name, value in vars(own.work).items():
        if isinstance(value, torch.Tensor) and value.numel():
            places = {getattr(step.work, name).data_ptr() for step in steps}
            assert len(places) == (4 if name in ("most", "place", "flag") else 1), name
    engine.late.grow(3, 8, 1024)
    assert engine.late.steps[0].work.batch == 8
    assert engine.late.steps[0].work.scores.data_ptr() != own.work.scores.data_ptr()
