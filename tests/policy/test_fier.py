"""FIER against its rule: keys read back from one bit a channel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive import DTYPES, HEADS, best, check_choice, dot, fresh, picked_by, through_pool

from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.base import Refresh
from hetero_sglang.policy.fier import GROUP, Fier
from hetero_sglang.policy.rows import bytes_to_rows, rows_to_bytes


def read_back(keys: torch.Tensor) -> torch.Tensor:
    """Keys [32, D] in their two levels per channel, float64; levels are stored in the keys' dtype."""
    out = torch.empty(keys.shape, dtype=torch.float64)
    for channel in range(keys.shape[1]):
        column = keys[:, channel].tolist()
        middle, half = (max(column) + min(column)) / 2, (max(column) - min(column)) / 2
        stored = [float(torch.tensor(x, dtype=torch.float64).float().to(keys.dtype)) for x in (middle, half)]
        for token, value in enumerate(column):
            out[token, channel] = stored[0] + (stored[1] if value >= middle else -stored[1])
    return out


def naive_estimate(queries: torch.Tensor, keys: torch.Tensor) -> list[float]:
    return [max(dot(query, key) for query in queries) for key in keys]


@pytest.mark.parametrize("dtype", (*DTYPES, torch.float64))
@pytest.mark.parametrize(("heads", "group"), HEADS)
@pytest.mark.parametrize("units", [0, 1, 3])
def test_an_index_that_went_through_the_pool_reads_back(dtype: torch.dtype, heads: int, group: int, units: int) -> None:
    keys, q = fresh(heads, units, GROUP, 8, dtype=dtype), fresh(heads, group, 8, dtype=dtype)
    index = Fier.index
    k_rows, v_rows = index.build(keys, 8)
    assert k_rows.shape == v_rows.shape == (heads, units, index.rows, 8) and k_rows.dtype == v_rows.dtype == dtype
    got = index.scores(q, *through_pool(k_rows, v_rows), 0.35)
    assert got.shape == (heads, units * GROUP) and got.dtype == torch.float32
    for head in range(heads):
        wanted = [s for unit in keys[head] for s in naive_estimate(q[head], read_back(unit))]
        assert got[head].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_is_read_as_the_nearer_of_two_levels(dtype: torch.dtype) -> None:
    """A query of one channel reads that channel back."""
    keys = fresh(2, 4, GROUP, 16, dtype=dtype)
    rows = Fier.index.build(keys, 16)
    for channel in range(16):
        q = torch.zeros(2, 1, 16)
        q[:, :, channel] = 1.0
        got = Fier.index.scores(q, *rows, 1.0).view(2, 4, GROUP)
        column = keys[..., channel].float()
        low, high = column.amin(2, keepdim=True), column.amax(2, keepdim=True)
        error = (got - column).abs()
        slack = 0.02 * (high - low)  # the levels are rounded to the keys' dtype
        assert bool((error <= torch.minimum((column - low).abs(), (column - high).abs()) + slack).all())
        assert int((got - got.roll(1, 2)).abs().gt(1e-6).sum()) > 0, "one level only"


def test_a_channel_that_never_changes_is_exact() -> None:
    """All bits are set then: as bfloat16 the packed rows are NaN, and must stay what they are."""
    keys = fresh(2, 3, 1, 8, dtype=torch.bfloat16).expand(-1, -1, GROUP, -1)
    rows = Fier.index.build(keys, 8)
    assert bool(rows[0][:, :, 0].isnan().all())
    q = fresh(2, 2, 8)
    true = torch.einsum("cgd,cupd->cgup", q, keys.float()).amax(1).flatten(1)
    torch.testing.assert_close(Fier.index.scores(q, *through_pool(*rows), 1.0), true, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "group"), HEADS)
@pytest.mark.parametrize("length", [1, 31, 32, 33, 96, 101])
def test_prompt_scores_estimate_groups_and_know_the_rest(
    dtype: torch.dtype, heads: int, group: int, length: int
) -> None:
    q, k = fresh(2, heads, group, 8, dtype=dtype), fresh(length, heads, 8, dtype=dtype)
    got = Fier().scores(q, k, 0.35)
    assert got.shape == (heads, length) and got.dtype == torch.float32
    whole = length // 32 * 32
    for head in range(heads):
        keys = [read_back(k[start : start + 32, head]) for start in range(0, whole, 32)]
        wanted = naive_estimate(q[-1, head], torch.cat([*keys, k[whole:, head].double()]))
        assert got[head].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@given(st.binary(min_size=1, max_size=64), st.sampled_from((*DTYPES, torch.float64)))
def test_bytes_survive_as_rows(data: bytes, dtype: torch.dtype) -> None:
    packed = torch.tensor(list(data), dtype=torch.uint8)[None]
    width = -(-len(data) // (2 * dtype.itemsize))
    k_row, v_row = through_pool(*bytes_to_rows(packed, width, dtype))
    assert k_row.shape == v_row.shape == (1, width) and k_row.dtype == v_row.dtype == dtype
    assert rows_to_bytes(k_row, v_row, len(data)).tolist() == packed.tolist()


def test_the_bits_of_four_byte_keys_need_no_value_row() -> None:
    _, v_rows = Fier.index.build(fresh(1, 2, GROUP, 8), 8)
    assert not v_rows[:, :, 0].any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(HeteroError, match="hold 8"):
        bytes_to_rows(torch.zeros(1, 9, dtype=torch.uint8), 2, torch.bfloat16)
    with pytest.raises(HeteroError, match="8 and 4 wide"):
        Fier.index.build(torch.zeros(1, 0, GROUP, 8), 4)


@pytest.mark.parametrize("count", [0, 1, 20, 60])
def test_single_tokens_are_picked_and_those_without_a_score_last(count: int) -> None:
    scores = fresh(2, 80)
    scores[:, 64:] = float("-inf")
    counts = [count, count // 2]
    picked = picked_by(Fier(), scores, counts, 4, 76)
    check_choice(picked, counts, 4, 76)
    for row, positions, n in zip(scores, picked, counts, strict=True):
        assert positions.tolist() == best(row.tolist(), n, 4, 76)
    assert [p.tolist() for p in picked_by(Fier(), scores, [72, 72], 4, 76)] == [list(range(4, 76))] * 2


def test_tokens_are_chosen_at_every_step() -> None:
    assert Fier.refresh is Refresh.STEP and Fier().index_share == 1 / 16
    assert Fier().index_rows(100, 130, 0.5, 64) == 10
