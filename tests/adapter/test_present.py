"""Every rank's heads are told by layer and head of the model, however many ranks there are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
from core_helpers import random_profile  # noqa: E402

from hetero_sglang.config.layout import build_layout  # noqa: E402
from hetero_sglang.sglang.present import head_shares  # noqa: E402


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_shares_stand_where_their_heads_do(size: int, seed: int) -> None:
    profile = random_profile(seed)
    ranks = tuple(build_layout(profile, 0.9, rank, size) for rank in range(size))
    heads = SimpleNamespace(get_total_num_kv_heads=lambda: profile.num_kv_heads)
    state = SimpleNamespace(
        settings=SimpleNamespace(ranks=ranks, layout=ranks[0]), scheduler=SimpleNamespace(model_config=heads)
    )
    tokens, held, expected = 1000, [], np.ones((profile.num_layers, profile.num_kv_heads))
    for rank, layout in enumerate(ranks):
        for index, layer in enumerate(layout.layers):
            for head in layer.compressed:
                whole = rank * profile.num_kv_heads // size + head
                held.append(10 * (1 + index * profile.num_kv_heads + whole))
                expected[index, whole] = held[-1] / tokens
    shares = head_shares(state, np.array(held), tokens)  # type: ignore[arg-type]
    assert shares == pytest.approx(expected) and json.loads(json.dumps(shares)) == shares
