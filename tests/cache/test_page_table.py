"""Tables of pages against plain lists of them."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetero_sglang.cache.page_table import PageTable

LISTS = st.lists(st.lists(st.integers(0, 1 << 40), max_size=5), max_size=6)


def table_of(lists: list[list[int]]) -> PageTable:
    pages = [page for each in lists for page in each]
    return PageTable(torch.tensor(pages, dtype=torch.int64), np.array([len(each) for each in lists], dtype=np.int64))


def lists_of(table: PageTable) -> list[list[int]]:
    return [table[number].tolist() for number in range(len(table.counts))]


@given(st.data())
def test_all_lists_at_once_are_each_list_alone(data: st.DataObject) -> None:
    lists = data.draw(LISTS)
    cuts = [data.draw(st.integers(0, len(each))) for each in lists]
    table = table_of(lists)
    assert lists_of(table) == lists
    first, after = table.split(np.array(cuts, dtype=np.int64))
    assert lists_of(first) == [each[:cut] for each, cut in zip(lists, cuts, strict=True)]
    assert lists_of(after) == [each[cut:] for each, cut in zip(lists, cuts, strict=True)]
    assert lists_of(first.followed_by(after)) == lists
    others = [data.draw(st.lists(st.integers(0, 9), max_size=3)) for _ in lists]
    assert lists_of(table.followed_by(table_of(others))) == [a + b for a, b in zip(lists, others, strict=True)]
    assert lists_of(PageTable.empty(len(lists))) == [[] for _ in lists]
