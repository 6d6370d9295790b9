"""Observed attention weights: the kernel against its torch twin."""

from __future__ import annotations

import pytest
import torch

from hetero_sglang.ops.triton import observe
from hetero_sglang.selection import scores

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("over", ["max", "mean"])
@pytest.mark.parametrize(
    ("width", "heads", "group", "length", "dim"),
    [(1, 2, 1, 1, 16), (8, 3, 4, 300, 64), (32, 1, 2, 130, 24), (5, 2, 3, 5, 16)],
)
def test_weights_equal_the_twin(width: int, heads: int, group: int, length: int, dim: int, over: str) -> None:
    q = torch.randn(width, heads, group, dim) * 2
    whole = torch.full((length, heads + 2, dim), float("nan"))
    whole[:, 1:-1] = torch.randn(length, heads, dim)
    k = whole[:, 1:-1]  # rows apart, poison between them
    want = scores.observed_weights(q, k, 0.3, over)
    got = observe.observed_weights(q.to(DEVICE), whole.to(DEVICE)[:, 1:-1], 0.3, over)
    torch.testing.assert_close(got.cpu(), want, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="bfloat16 products need a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_products_alone(dtype: torch.dtype) -> None:
    q, k = torch.randn(32, 6, 4, 128).to(dtype), torch.randn(5000, 6, 128).to(dtype)
    want = scores.observed_weights(q.float(), k.float(), 128**-0.5, "max")
    got = scores.observed_weights(q.to(DEVICE), k.to(DEVICE), 128**-0.5, "max")
    torch.testing.assert_close(got.cpu(), want, atol=1e-4, rtol=1e-2)
