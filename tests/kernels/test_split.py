"""Plans that the device writes for FlashInfer: read as its kernels read them, they cover every token once."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from fake_flashinfer import offsets
from test_device_engine import DEVICE

from hetero_sglang.errors import HeteroError
from hetero_sglang.ops.base import StepTables
from hetero_sglang.ops.flashinfer.plan_place import PlanPlace, int_words, item_count
from hetero_sglang.ops.flashinfer.split import SplitTables, place, split

PAGE, CONTEXT = 4, 5000


def read(case: Case, number: int) -> tuple[list[int], int, list[list[tuple[int, int]]]]:
    """Lengths by indptr and last, the end of the lists, and the token ranges of each row's items."""
    spec, words = case.tables.places[number].tolist(), case.tables.words[number].cpu()
    page, heads, _, indptr, last = spec[:5]
    items, request, _, chunk_number, outputs, merged, chunk, mask = spec[5:]
    rows = case.rows[number]
    starts = words[indptr : indptr + rows + 1].tolist()
    ends = words[last : last + rows].tolist()
    lengths = [
        0 if starts[i + 1] == starts[i] else ((starts[i + 1] - starts[i] - 1) * page + ends[i]) % 2**32
        for i in range(rows)
    ]
    valid = words.view(torch.uint8)[mask : mask + items].tolist()
    size = int(words[chunk])
    ranges: list[list[tuple[int, int]]] = [[] for _ in range(rows)]
    for item in range(items):
        if not valid[item]:
            continue
        row, piece = int(words[request + item]), int(words[chunk_number + item])
        assert item == int(words[outputs + row]) + piece  # where its partial result goes
        ranges[row].append((min(piece * size, lengths[row]), min((piece + 1) * size, lengths[row])))
    assert torch.equal(words[outputs : outputs + rows + 1], words[merged : merged + rows + 1])
    assert int(words[outputs + rows]) == sum(valid) == sum(map(len, ranges)) <= items
    assert valid == sorted(valid, reverse=True)
    return starts, lengths, ranges


@dataclass(frozen=True)
class Case:
    tables: SplitTables
    rows: list[int]  # of each plan


def make(width: int, compressed: list[int], resident: list[int], processors: int, group: int) -> Case:
    plans = [(0, 0, r, width) for r in resident]
    first = 0
    for count in compressed:
        if count:
            plans.append((count, first, 1, width * count))
        first += count
    places, ints = [], 0
    for _, _, kv_heads, rows in plans:
        items = item_count(processors, kv_heads, rows, group)
        ints = max(ints, int_words(items, rows))
        assert offsets(items, rows)[1] <= 4 * int_words(items, rows)
    for heads, first_head, kv_heads, rows in plans:
        info, _ = offsets(item_count(processors, kv_heads, rows, group), rows)
        where = PlanPlace.read(info)
        places.append(place(PAGE if heads else 1, heads, first_head, ints, ints + rows + 1, where))
    most = max(rows for *_, rows in plans)
    words = torch.full((len(plans), ints + 2 * most + 1), -77, dtype=torch.int32, device=DEVICE)
    tables = SplitTables(torch.tensor(places, dtype=torch.int32, device=DEVICE), words, most)
    return Case(tables, [rows for *_, rows in plans])


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_every_token_is_read_once_whatever_the_lengths(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 4))
    compressed = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    resident = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=2, unique=True))
    case = make(width, compressed, resident, data.draw(st.integers(4, 40)), data.draw(st.integers(1, 8)))
    total = sum(compressed)
    page_list = torch.randperm(20000, dtype=torch.int32, device=DEVICE)
    # Requests ahead of one another anywhere in the list, and padding that names a dead request's pages.
    starts = data.draw(st.permutations(range(width * total)))
    page_start = torch.tensor(starts, dtype=torch.int32, device=DEVICE).view(width, total) * (CONTEXT // PAGE // 8)
    for _ in range(2):  # the second step finds what the first one left
        length = data.draw(st.lists(st.sampled_from([0, 1, 15, 16, 17, 127, 128, 129, 2000, 5000]), min_size=width,
                                    max_size=width))  # fmt: skip
        caps = data.draw(st.lists(st.integers(1, 600), min_size=width * total, max_size=width * total))
        cap = torch.tensor(caps, dtype=torch.int32, device=DEVICE).view(width, total)
        if data.draw(st.booleans()):
            page_start = page_start.flip(0).contiguous()
        tokens = torch.tensor(length, dtype=torch.int32, device=DEVICE)
        split(StepTables(tokens, cap, page_start, page_list, *[tokens] * 4), case.tables, CONTEXT)
        for number, (_, heads, first, *_) in enumerate(case.tables.places.tolist()):
            begins, lengths, ranges = read(case, number)
            for row in range(case.rows[number]):
                request, head = (row // heads, first + row % heads) if heads else (row, None)
                wanted = length[request] if head is None else min(length[request], int(cap[request, head]))
                assert lengths[row] == wanted
                covered = [token for begin, end in ranges[row] for token in range(begin, end)]
                assert covered == list(range(wanted))
                assert len(ranges[row]) == 1 or all(begin < end for begin, end in ranges[row])
                if wanted:
                    at = request * CONTEXT if head is None else int(page_start[request, head])
                    assert begins[row] == at and at < begins[-1]
            assert begins[-1] == (page_list.numel() if heads else width * CONTEXT)


def test_long_rows_fill_the_items_there_are() -> None:
    case = make(1, [2], [1], 66, 4)
    page_list = torch.zeros(100000, dtype=torch.int32, device=DEVICE)
    length = torch.tensor([131072], dtype=torch.int32, device=DEVICE)
    cap = torch.tensor([[32000, 8000]], dtype=torch.int32, device=DEVICE)
    page_start = torch.tensor([[0, 9000]], dtype=torch.int32, device=DEVICE)
    split(StepTables(length, cap, page_start, page_list, *[length] * 4), case.tables, 200000)
    for number, tokens in enumerate(([131072], [32000, 8000])):
        _, lengths, ranges = read(case, number)
        assert lengths == tokens
        assert 0.9 * 132 <= sum(map(len, ranges)) <= 132


@pytest.mark.parametrize("changed", [{3: 64}, {13: 0}, {14: 0}, {}])
def test_another_form_of_plan_is_refused(changed: dict[int, int]) -> None:
    info, _ = offsets(10, 4)
    info = [changed.get(i, x) for i, x in enumerate(info)]
    with pytest.raises(HeteroError, match="--hetero-decode-kernel triton"):
        PlanPlace.read(info if changed else info[:-1])
