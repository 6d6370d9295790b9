"""Quest against its rule: bounds of pages, and whole pages by them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive import DTYPES, HEADS, check_choice, fresh, picked_by, through_pool

from hetero_sglang.errors import HeteroError
from hetero_sglang.policy.base import Refresh
from hetero_sglang.policy.quest import PAGE, Quest
from hetero_sglang.policy.rows import split_units


def naive_bound(queries: torch.Tensor, keys: torch.Tensor) -> float:
    """queries [G, D], keys [tokens, D]: per channel the better end of the range, summed; the group's greatest."""
    bounds = []
    for query in queries.tolist():
        columns = list(zip(*keys.tolist(), strict=True))
        bounds.append(sum(max(x * min(c), x * max(c)) for x, c in zip(query, columns, strict=True)))
    return max(bounds)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "group"), HEADS)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 48, 75])
def test_prompt_scores_are_the_bounds_of_pages(dtype: torch.dtype, heads: int, group: int, length: int) -> None:
    q, k = fresh(3, heads, group, 8, dtype=dtype), fresh(length, heads, 8, dtype=dtype)
    got = Quest().scores(q, k, 0.35)
    assert got.shape == (heads, length) and got.dtype == torch.float32
    for head in range(heads):
        for start in range(0, length, 16):
            wanted = naive_bound(q[-1, head], k[start : start + 16, head])
            assert got[head, start : start + 16].tolist() == pytest.approx(
                [wanted] * min(16, length - start), rel=1e-5, abs=1e-5
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "group"), HEADS)
def test_an_index_that_went_through_the_pool_gives_the_bounds(dtype: torch.dtype, heads: int, group: int) -> None:
    keys, q = fresh(heads, 5, PAGE, 8, dtype=dtype), fresh(heads, group, 8, dtype=dtype)
    index = Quest.index
    k_rows, v_rows = index.build(keys, 8)
    assert k_rows.shape == v_rows.shape == (heads, 5, index.rows, 8) and k_rows.dtype == v_rows.dtype == dtype
    got = index.scores(q, *through_pool(k_rows, v_rows), 0.35)
    wanted = [[naive_bound(q[head], keys[head, page]) for page in range(5) for _ in range(16)] for head in range(heads)]
    torch.testing.assert_close(got.double(), torch.tensor(wanted, dtype=torch.float64), atol=1e-5, rtol=1e-5)


def test_no_key_of_a_page_exceeds_its_bound() -> None:
    keys, q = fresh(2, 9, PAGE, 16), fresh(2, 3, 16)
    bound = Quest.index.scores(q, *Quest.index.build(keys, 16), 1.0)
    true = torch.einsum("cgd,cupd->cgup", q, keys).amax(1).flatten(1)
    assert bool((bound >= true - 1e-4).all())


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=7),
    st.lists(st.integers(0, 120), min_size=1, max_size=4),
    st.integers(0, 15),
    st.data(),
)
def test_whole_pages_are_picked(pages: list[int], counts: list[int], cut: int, data: st.DataObject) -> None:
    """Scores tie between pages too; the last tokens are not indexed yet."""
    length = len(pages) * 16 + cut
    low = data.draw(st.integers(0, length))
    high = data.draw(st.integers(low, length))
    row = [float(pages[t // 16]) if t < len(pages) * 16 else float("-inf") for t in range(length)]
    picked = picked_by(Quest(), torch.tensor([row] * len(counts)), counts, low, high)
    check_choice(picked, counts, low, high)
    order = sorted(range(len(pages)), key=lambda page: (-pages[page], page)) + [len(pages)]
    tokens = [t for page in order for t in range(page * 16, page * 16 + 16) if low <= t < high]
    for positions, count in zip(picked, counts, strict=True):
        assert positions.tolist() == sorted(tokens[:count])


@given(st.lists(st.lists(st.integers(-3, 3), min_size=20, max_size=20), min_size=1, max_size=4), st.data())
def test_equals_are_picked_from_the_left(rows: list[list[int]], data: st.DataObject) -> None:
    counts = [data.draw(st.integers(0, 25)) for _ in rows]
    picked = picked_by(Quest(), torch.tensor(rows).float(), counts, 2, 18)
    check_choice(picked, counts, 2, 18)
    for row, positions, count in zip(rows, picked, counts, strict=True):
        assert positions.tolist() == sorted(sorted(range(2, 18), key=lambda t: (-row[t], t))[:count])


@pytest.mark.parametrize("length", [1, 31, 32, 70])
def test_units_hold_the_keys_in_order(length: int) -> None:
    k = fresh(length, 3, 4)
    units, tail = split_units(k, 32)
    assert units.shape == (3, length // 32, 32, 4)
    torch.testing.assert_close(torch.cat((units.flatten(1, 2), tail), 1), k.transpose(0, 1))


def test_values_of_another_width_are_refused() -> None:
    with pytest.raises(HeteroError, match="8 and 4 wide"):
        Quest.index.build(torch.zeros(1, 0, PAGE, 8), 4)


def test_pages_are_chosen_at_every_step() -> None:
    assert Quest.refresh is Refresh.STEP and Quest().index_share == 1 / 16
    assert Quest().candidates(torch.zeros(1, 100), 10, 64) is None
    assert Quest().index_rows(100, 130, 0.5, 64) == 9, "a row for each of 130 tokens' pages, the last begun"
