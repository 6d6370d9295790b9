"""Draft tokens with the kernels against torch's operations: outputs, and every row that stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from core_helpers import Guess, make_settings, random_profile, verify
from test_device_engine import CLOSE, extend, pairs_of, same_ends, same_rows
from test_drafts import BRANCHED, PATHS
from test_lazy_heads import SOME, Run, lazy_settings, slots_of

from hetero_sglang.config.settings import Settings


def through(settings: Settings, turns: int, seed: int) -> None:
    """Two requests of which the second's path is the next in turn; the kernels' passes are padded."""
    prompts = [150, 90]
    pairs = pairs_of(settings, prompts, 60, slots_of(590, seed))
    extend(pairs, [(0, n) for n in prompts])
    lengths = prompts
    for turn in range(turns):
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


@pytest.mark.parametrize("run", [1, 4, pytest.param((8, 1), marks=pytest.mark.slow)])
@pytest.mark.parametrize("probed", [None, pytest.param(SOME, marks=pytest.mark.slow)])
def test_heads_with_an_index(probed: object, run: Run) -> None:
    through(lazy_settings(3, run, probed=probed), 4, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_resident_heads_and_such_as_look_for_nothing(seed: int) -> None:
    through(make_settings(random_profile(seed, layers=2, heads=3)), 3, seed)
