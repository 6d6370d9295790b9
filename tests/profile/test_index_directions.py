"""A key index finds the directions that matter to products of queries and keys: planted covariances, no model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hetero_sglang.calibration.index import DEFAULT_FIELDS, fit_fields, plan_index
from hetero_sglang.calibration.moments import HeadMoments, Moments
from hetero_sglang.errors import HeteroError
from hetero_sglang.ops.reference.index import encode_keys, unpack
from hetero_sglang.profile.index_plan import IndexPlan

H, G, D, N = 3, 2, 64, 1500
FEW = ((8, 4), (8, 2))


def planted(seed: int, dim: int = D, rank: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Anisotropic queries [H G, N, dim] (in `rank` dimensions) and keys [H, N, dim], each with axes of its own."""
    rng = torch.Generator().manual_seed(seed)

    def drawn(heads: int, falling: float, kept: int) -> torch.Tensor:
        axes = torch.linalg.qr(torch.randn(heads, dim, dim, generator=rng)).Q
        size = torch.arange(1, dim + 1) ** -falling * (torch.arange(dim) < kept)
        return (torch.randn(heads, N, dim, generator=rng) * size) @ axes

    queries = drawn(H, 0.7, rank or dim).repeat_interleave(G, 0)
    return queries + 0.1 * queries.roll(1, 1), 3 * drawn(H, 1.0, dim)


def moments_of(q: torch.Tensor, k: torch.Tensor, parts: int = 3) -> Moments:
    moments = Moments(1)
    for query, key in zip(q.chunk(parts, 1), k.chunk(parts, 1), strict=True):
        moments.add(0, query, key)
    return moments


def logits(plan: IndexPlan, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """What the index makes of every query and key [H, G N, N]."""
    encode, offset, decode = (torch.from_numpy(t[0]) for t in (plan.encode, plan.offset, plan.decode))
    codes = unpack(encode_keys(k.transpose(0, 1), encode, offset, plan.fields), plan.fields)
    return q.reshape(H, -1, q.shape[-1]) @ decode @ codes.transpose(1, 2)


def agreement(plan: IndexPlan, q: torch.Tensor, k: torch.Tensor) -> float:
    """Share of the variance of a query's logits over keys that the index tells."""
    true = q.reshape(H, -1, q.shape[-1]) @ k.transpose(1, 2)
    left = true - logits(plan, q, k)
    return float(1 - left.var(-1).sum() / true.var(-1).sum())


def random_plan(q: torch.Tensor, k: torch.Tensor) -> IndexPlan:
    """The same quantiser in random orthonormal directions."""
    found = moments_of(q, k).of(0)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((H, D, D))).Q
    spread = np.sqrt(np.einsum("hdr,hde,her->hr", turn, found.covariance, turn))
    order = np.argsort(-spread)[:, None]
    turn = np.take_along_axis(turn, order, 2)[..., :16]
    unit = np.take_along_axis(spread, order[:, 0], 1)[:, None, :16] * np.repeat([0.3352, 0.9957], 8)
    middle = np.repeat([7.5, 1.5], 8)
    offset = np.einsum("hd,hdr->hr", found.mean, turn / unit) - middle
    return IndexPlan(FEW, *(t[None].astype(np.float32) for t in (turn / unit, offset, turn * unit)))


def test_moments_are_those_of_all_chunks_together():
    q, k = planted(1)
    k = k + 50 * torch.randn(H, 1, D, generator=torch.Generator().manual_seed(2))
    found = moments_of(q, k).of(0)
    key, query = k.double().numpy(), q.double().reshape(H, -1, D).numpy()
    assert np.allclose(found.mean, key.mean(1), atol=1e-5)
    for head in range(H):
        assert np.allclose(found.covariance[head], np.cov(key[head].T, bias=True), atol=1e-4)
        assert np.allclose(found.queries[head], query[head].T @ query[head] / (G * N), atol=1e-4)


def test_found_directions_tell_more_than_random_ones_on_other_text():
    seen = [t[:, : N // 2] for t in planted(3)]
    other = [t[:, N // 2 :] for t in planted(3)]
    plan = plan_index(moments_of(*seen).all(), FEW)
    assert agreement(plan, *other) > 0.9
    assert agreement(random_plan(*seen), *other) < 0.6


def test_more_bits_tell_more():
    q, k = planted(4)
    moments = moments_of(q, k).all()
    shares = [agreement(plan_index(moments, fields), q, k) for fields in (((16, 1),), FEW, ((16, 4),), ((64, 4),))]
    assert shares == sorted(shares) and shares[-1] > 0.97


def test_all_directions_unrounded_are_the_product_itself():
    q, k = planted(5)
    plan = plan_index(moments_of(q, k).all(), ((64, 4),))
    encode, offset, decode = (torch.from_numpy(t[0]).double() for t in (plan.encode, plan.offset, plan.decode))
    codes = k.double() @ encode - offset[:, None]
    query = q.double().reshape(H, -1, D)
    left = query @ k.double().transpose(1, 2) - query @ decode @ codes.transpose(1, 2)
    left -= left.mean(-1, keepdim=True)
    assert left.abs().max() < 0.01 * k.abs().max()  # of float16


@pytest.mark.parametrize("size", [3.0, 300.0])
def test_what_all_keys_share_changes_nothing(size):
    q, k = planted(6)
    shift = size * torch.randn(H, 1, D, generator=torch.Generator().manual_seed(6))
    near, far = (plan_index(moments_of(q, key).all(), FEW) for key in (k, k + shift))
    assert agreement(far, q, k + shift) == pytest.approx(agreement(near, q, k), abs=0.01)


def test_the_widest_directions_get_most_bits_in_whatever_order_fields_are_given():
    q, k = planted(7)
    moments = moments_of(q, k).all()
    one, other = plan_index(moments, FEW), plan_index(moments, FEW[::-1])
    assert one.fields == other.fields == FEW and np.array_equal(one.encode, other.encode)
    encode, offset = (torch.from_numpy(t[0]) for t in (one.encode, one.offset))
    codes = unpack(encode_keys(k.transpose(0, 1), encode, offset, FEW), FEW)
    told = (codes.std(1) * (q.reshape(H, -1, D) @ torch.from_numpy(one.decode[0])).std(1)).numpy()
    assert told[:, :8].min() > told[:, 8:].max()
    assert codes[..., :8].mean().item() == pytest.approx(7.5, abs=0.3)
    assert codes[..., 8:].mean().item() == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize("rank", [1, 5])
def test_queries_of_few_dimensions_are_no_trouble(rank):
    q, k = planted(8, rank=rank)
    assert agreement(plan_index(moments_of(q, k).all(), FEW), q, k) > 0.9


@pytest.mark.parametrize("case", ["keys", "queries", "both", "one key"])
def test_heads_with_nothing_to_tell_have_a_plan(case):
    q, k = planted(9)
    if case in ("keys", "both"):
        k = torch.ones_like(k) * 7
    if case in ("queries", "both"):
        q = torch.zeros_like(q)
    if case == "one key":
        q, k = q[:, :1], k[:, :1]
    plan = plan_index(moments_of(q, k, 1).all(), FEW)
    assert np.isfinite(logits(plan, q, k).numpy()).all()


def test_numbers_beyond_float16_are_refused_by_head():
    q, k = planted(10)
    k[1] *= 1e-7
    with pytest.raises(HeteroError, match="layer 0 head 1: the index has .*beyond float16"):
        plan_index(moments_of(q, k).all(), FEW)


@pytest.mark.parametrize(
    ("dim", "fitting"),
    [
        (128, DEFAULT_FIELDS),
        (32, ((8, 4), (24, 2))),
        (30, ((8, 4), (16, 2))),
        (16, ((8, 4), (8, 2))),
        (8, ((8, 4),)),
        (5, ((4, 4),)),
    ],
)
def test_small_heads_get_fewer_directions(dim, fitting):
    assert fit_fields(DEFAULT_FIELDS, dim) == fitting
    if dim < D:
        q, k = planted(11, dim)
        assert agreement(plan_index(moments_of(q, k).all(), fitting), q, k) > 0.7


def test_too_many_directions_and_too_small_heads_are_refused():
    with pytest.raises(HeteroError, match="heads of 3 dimensions are too small for an index"):
        fit_fields(DEFAULT_FIELDS, 3)
    with pytest.raises(HeteroError, match="an index of 32 directions does not fit heads of 16 dimensions"):
        plan_index(moments_of(*planted(12, 16)).all(), DEFAULT_FIELDS)
    empty = HeadMoments(np.zeros((1, 16)), np.zeros((1, 16, 16)), np.zeros((1, 16, 16)))
    with pytest.raises(HeteroError, match="in 3 bits is not possible"):
        plan_index([empty], ((16, 3),))
