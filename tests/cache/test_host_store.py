"""The host store keeps what was written, for the slot it was written for."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sglang.cache import host_store
from hetero_sglang.cache.host_layout import BLOCK
from hetero_sglang.cache.host_store import HostStore, put_rows, take_rows
from hetero_sglang.errors import HeteroError

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn]


@pytest.fixture
def rng() -> random.Random:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # shown when the test fails
    torch.manual_seed(seed)
    return random.Random(seed)


def raw(values: torch.Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reading_gives_what_was_written_last(dtype: torch.dtype, rng: random.Random) -> None:
    heads = [rng.randint(0, 3) for _ in range(4)] + [0, 2]
    store = HostStore(40, heads, 5, 7, dtype)
    written: dict[tuple[int, int], tuple[bytes, bytes]] = {}
    for _ in range(60):
        layer = rng.randrange(len(heads))
        slots = torch.randperm(40)[: rng.randint(0, 12)]
        k = torch.randn(heads[layer], len(slots), 5).to(dtype).transpose(0, 1)  # not contiguous
        v = torch.randn(len(slots), heads[layer], 7).to(dtype)
        put_rows(store.blocks[layer], slots, torch.cat((k, v), -1))
        for at, slot in enumerate(slots.tolist()):
            written[layer, slot] = raw(k[at]), raw(v[at])
        held = store.blocks[layer].transpose(1, 2).flatten(0, 1)  # [slots, C, D + Dv]
        assert raw(held[slots, :, :5].contiguous()) == raw(k)
    for (layer, slot), (k_bytes, v_bytes) in written.items():
        k, v = take_rows(store.blocks[layer], torch.tensor([slot])).split((5, 7), 2)
        assert k.shape == (1, heads[layer], 5) and v.shape == (1, heads[layer], 7)
        assert (raw(k), raw(v)) == (k_bytes, v_bytes)
        one = take_rows(store.blocks[layer], torch.tensor([slot] * heads[layer]), torch.arange(heads[layer]))
        assert raw(one) == raw(take_rows(store.blocks[layer], torch.tensor([slot])))
    store.close()


def test_a_read_is_a_copy() -> None:
    store = HostStore(4, [1], 2, 2, torch.float32)
    rows = take_rows(store.blocks[0], torch.tensor([1, 1]))
    put_rows(store.blocks[0], torch.tensor([1]), torch.ones(1, 1, 4))
    assert rows.tolist() == [[[0, 0, 0, 0]], [[0, 0, 0, 0]]]


@pytest.mark.parametrize("slot", [-1, 8, 2**40])
def test_a_slot_out_of_range_is_refused_everywhere(slot: int) -> None:
    store = HostStore(8, [2], 3, 3, torch.float32)
    slots = torch.tensor([0, slot])
    for action in (lambda: store.release(slots), lambda: store.stamp(slots)):
        with pytest.raises(IndexError):
            action()
    assert not store.generation.any()


def test_the_layout_says_where_every_row_lies(rng: random.Random) -> None:
    store = HostStore(9, [0, 3, 1, 0, 2], 4, 6, torch.float16)
    layout = store.layout()
    assert layout.nbytes == store.nbytes and layout.dtype == "float16"
    for layer, heads in enumerate(layout.heads):
        view = store.blocks[layer]
        assert view.shape == (1, heads, BLOCK, layout.head_dim + layout.v_head_dim)
        view.copy_(torch.randn(view.shape))
        size = view.numel() * layout.itemsize
        held = np.frombuffer(store.memory.buffer, np.uint8, offset=layout.offsets[layer])[:size].tobytes()
        assert held == raw(view)


def test_no_two_layers_share_a_byte() -> None:
    store = HostStore(3, [1, 2, 0, 1], 3, 5, torch.float32)
    blocks = store.blocks
    for number, block in enumerate(blocks):
        block.fill_(number)
    assert all(bool((block == number).all()) for number, block in enumerate(blocks))


def test_bytes_per_row_is_what_a_token_costs() -> None:
    store = HostStore(4096, [1, 2, 0], 8, 16, torch.bfloat16)
    assert store.bytes_per_row == 3 * (8 + 16) * 2
    assert store.nbytes == 4096 * store.bytes_per_row  # whole pages here, so no padding


def test_more_than_the_free_memory_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_store, "free_host_bytes", lambda: 10_000)
    HostStore(16, [2], 64, 64, torch.bfloat16).close()
    with pytest.raises(HeteroError, match="(?s)16 slots.*--hetero-host-size"):
        HostStore(16, [3], 64, 64, torch.bfloat16)


def test_a_store_without_compressed_heads_works() -> None:
    store = HostStore(4, [0, 0], 8, 8, torch.bfloat16)
    assert store.nbytes == 0 and store.bytes_per_row == 0
    assert take_rows(store.blocks[1], torch.tensor([2])).shape == (1, 0, 16)
    store.close()


slot_sets = st.lists(st.integers(0, 9), max_size=6, unique=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), slot_sets), max_size=20))
def test_unchanged_are_exactly_the_slots_not_released_since(
    steps: list[tuple[bool, list[int]]],
) -> None:
    store = HostStore(10, [1], 1, 1, torch.float32)
    stamps: list[tuple[torch.Tensor, torch.Tensor, set[int]]] = []
    for is_stamp, chosen in steps:
        slots = torch.tensor(chosen, dtype=torch.int64)
        if is_stamp:
            stamps.append((slots, store.stamp(slots), set()))
        else:
            store.release(slots)
            for *_, released in stamps:
                released.update(chosen)
        for slots, generations, released in stamps:
            expected = [slot not in released for slot in slots.tolist()]
            assert store.unchanged(slots, generations).tolist() == expected
    store.close()
