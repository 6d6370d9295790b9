"""SnapKV against its rule, one number at a time."""

from __future__ import annotations

import pytest
import torch
from naive import DTYPES, HEADS, attended, best, check_choice, fresh, neighbours, picked_by

from hetero_sglang.policy.base import Refresh
from hetero_sglang.policy.snapkv import SnapKV


def naive_scores(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """Mean over the queries, mean of 5 neighbours, mean over the group."""
    width, heads, group, _ = q.shape
    length = k.shape[0]
    rows = []
    for head in range(heads):
        row = [0.0] * length
        for member in range(group):
            weights = [attended(q, k, scale, head, member, query) for query in range(width)]
            mean = [sum(column) / width for column in zip(*weights, strict=True)]
            for token in range(length):
                near = neighbours(mean, token, 2)
                row[token] += sum(near) / len(near) / group
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "group"), HEADS)
@pytest.mark.parametrize(("width", "length"), [(1, 1), (1, 40), (5, 5), (11, 30)])
def test_scores_follow_the_rule(dtype: torch.dtype, heads: int, group: int, width: int, length: int) -> None:
    q, k = fresh(width, heads, group, 8, dtype=dtype), fresh(length, heads, 8, dtype=dtype)
    got = SnapKV().scores(q, k, 0.35)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), naive_scores(q, k, 0.35), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 17, 40, 400])
def test_every_head_keeps_its_own_best(count: int) -> None:
    scores = fresh(3, 64)
    counts, low, high = [count, count // 2, count + 3], 4, 50
    picked = picked_by(SnapKV(), scores, counts, low, high)
    check_choice(picked, counts, low, high)
    assert [p.tolist() for p in picked] == [
        best(row.tolist(), n, low, high) for row, n in zip(scores, counts, strict=True)
    ]


def test_the_choice_is_made_once_from_no_index() -> None:
    policy = SnapKV()
    assert policy.refresh is Refresh.NEVER and policy.index is None and not policy.roles
    assert policy.index_rows(1000, 1200, 0.3, 64) == 0
