"""Draft tokens with the kernels: what they attend to, and every row that stays, against torch's operations."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import Guess, engine_of, make_cache, make_settings, random_profile, verify
from test_device_engine import CLOSE, DEVICE, extend, pairs_of, same_ends, same_rows
from test_drafts import BRANCHED, PATHS, check_attention
from test_lazy_heads import SOME, Run, lazy_settings, slots_of

from hetero_sglang.ops import triton

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("run", "probed"),
    [
        (4, SOME),
        pytest.param(1, None, marks=SLOW),
        pytest.param(4, None, marks=SLOW),
        pytest.param((8, 1), None, marks=SLOW),
    ],
)
def test_heads_with_an_index(run: Run, probed: np.ndarray | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels round a query's weights to 8 bits, so rows wanted little may differ: outputs follow what is held."""
    cache = make_cache(lazy_settings(2, run, probed=probed), device=DEVICE)
    engine_of(cache, triton)
    check_attention(cache, 3, monkeypatch)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=SLOW)])
def test_resident_heads_and_such_as_look_for_nothing(seed: int) -> None:
    """Two requests, of which the second's path is the next in turn; the kernels' passes are padded."""
    lengths = [150, 90]
    pairs = pairs_of(make_settings(random_profile(seed, layers=2, heads=3)), lengths, 60, slots_of(590, seed))
    extend(pairs, [(0, n) for n in lengths])
    for turn in range(4):
        paths = [PATHS[(turn + n) % len(PATHS)] for n in range(2)]
        given = list(zip(pairs, lengths, paths, strict=True))
        both = [
            [Guess(pair[which], length, BRANCHED, path, seed=turn) for pair, length, path in given] for which in (0, 1)
        ]
        for want, have in zip(verify(both[0]), verify(both[1], 3), strict=True):
            torch.testing.assert_close(have, want, **CLOSE)
        lengths = [n + len(path) for n, path in zip(lengths, paths, strict=True)]
        same_rows(pairs, lengths)
    same_ends(pairs)
