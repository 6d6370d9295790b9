"""A fetch brings exactly the rows that were asked for, in the order they were asked for."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval_helpers import (
    Connect,
    fetch_one,
    held,
    oracle,
    poison,
    poll_until,
    random_items,
    random_store,
    wait_all,
)

from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer.client import Failed, Fetched, FetchItem
from hetero_sglang.transfer.gather import cut
from hetero_sglang.transfer.protocol import Gather


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_equal_the_oracle(dtype: torch.dtype, threads: int, rng: random.Random, connect: Connect) -> None:
    store = random_store(rng, dtype)
    client = connect(store, staging_rows=3000, threads=threads)
    for _ in range(40):
        poison(client)
        rounds = [random_items(rng, store, rng.randint(0, 12)) for _ in range(3)]
        tickets = [client.fetch(items) for items in rounds]
        assert None not in tickets
        done = wait_all(client, tickets)
        for items, ticket in zip(rounds, tickets, strict=True):
            fetched = done[ticket]
            assert isinstance(fetched, Fetched), fetched
            for found, wanted in zip((fetched.k, fetched.v), oracle(store, items), strict=True):
                assert found.dtype == dtype and torch.equal(found, wanted)
            client.release(ticket)
        assert client.ring.free_rows == client.ring.rows


def test_a_fetch_shared_by_several_threads_is_whole(rng: random.Random, connect: Connect) -> None:
    store = random_store(rng, torch.bfloat16, rows=5000, heads=[2, 0, 3])
    client = connect(store, staging_rows=30_000, threads=4)
    poison(client)
    items = [FetchItem(layer, 1, torch.randint(0, 5000, (9000,))) for layer in (0, 2, 0)]
    fetched = fetch_one(client, items)
    assert isinstance(fetched, Fetched)
    wanted = torch.cat([held(store, item.layer)[item.slots, item.head] for item in items])
    assert torch.equal(torch.cat((fetched.k, fetched.v), 1), wanted)


def test_a_fetch_sees_what_was_written_before_it(store: HostStore, connect: Connect) -> None:
    client = connect(store)
    layer = max(range(len(store.heads)), key=store.heads.__getitem__)
    slots = torch.tensor([3, 1, 4])
    for _ in range(20):
        k = torch.randn(3, store.heads[layer], store.head_dim).to(store.dtype)
        v = torch.randn(3, store.heads[layer], store.v_head_dim).to(store.dtype)
        store.write(layer, slots, k, v)
        fetched = fetch_one(client, [FetchItem(layer, 0, slots)])
        assert isinstance(fetched, Fetched)
        assert torch.equal(fetched.k, k[:, 0]) and torch.equal(fetched.v, v[:, 0])
        client.release(fetched.ticket)


def test_rows_of_slots_released_on_the_way_are_known(store: HostStore, connect: Connect) -> None:
    client = connect(store)
    layer = max(range(len(store.heads)), key=store.heads.__getitem__)
    before = held(store, layer)[..., : store.head_dim]
    slots = torch.randperm(store.rows)[:50]
    ticket = client.fetch([FetchItem(layer, 0, slots)])
    generations = store.stamp(slots)
    reused = slots[torch.randperm(50)[:20]]
    store.release(reused)
    shape = (20, store.heads[layer])
    other = [torch.randn(*shape, dim).to(store.dtype) for dim in (store.head_dim, store.v_head_dim)]
    store.write(layer, reused, *other)
    assert ticket is not None
    fetched = wait_all(client, [ticket])[ticket]
    assert isinstance(fetched, Fetched)
    good = store.unchanged(slots, generations)
    assert set(slots[~good].tolist()) == set(reused.tolist())
    assert torch.equal(fetched.k[good], before[slots[good], 0])


def test_a_full_ring_refuses_and_a_release_makes_room(store: HostStore, connect: Connect) -> None:
    client = connect(store, staging_rows=100)
    layer = max(range(len(store.heads)), key=store.heads.__getitem__)
    item = FetchItem(layer, 0, torch.arange(60))
    first = client.fetch([item])
    assert first is not None
    assert client.fetch([item]) is None
    wait_all(client, [first])
    assert client.fetch([item]) is None, "a fetched ticket holds its rows until it is released"
    client.release(first)
    client.release(first)
    second = client.fetch([item])
    assert second is not None and second != first
    assert client.fetch([FetchItem(layer, 0, torch.arange(101))]) is None
    stats = client.stats
    assert (stats.fetches, stats.refused, stats.rows) == (2, 3, 60)
    assert stats.bytes == 60 * (store.head_dim + store.v_head_dim) * store.dtype.itemsize


def test_an_abandoned_fetch_completes_silently_and_frees_its_rows(store: HostStore, connect: Connect) -> None:
    client = connect(store)
    layer = max(range(len(store.heads)), key=store.heads.__getitem__)
    ticket = client.fetch([FetchItem(layer, 0, torch.arange(60))])
    assert ticket is not None
    client.release(ticket)
    assert client.ring.free_rows == client.ring.rows - 60, "the worker may still write there"
    completions = poll_until(client, lambda _: client.ring.free_rows == client.ring.rows)
    assert completions == []


@pytest.mark.parametrize("wrong", ["layer", "head", "empty layer", "slot", "negative slot"])
def test_what_does_not_exist_fails_alone(wrong: str, rng: random.Random, connect: Connect) -> None:
    store = random_store(rng, torch.float16, heads=[2, 0])
    client = connect(store, staging_rows=100)
    pid = client.pid
    good = FetchItem(0, 1, torch.arange(5))
    bad = {
        "layer": FetchItem(2, 0, torch.arange(5)),
        "head": FetchItem(0, 2, torch.arange(5)),
        "empty layer": FetchItem(1, 0, torch.arange(5)),
        "slot": FetchItem(0, 0, torch.tensor([1, store.rows])),
        "negative slot": FetchItem(0, 0, torch.tensor([1, -1])),
    }[wrong]
    failed = fetch_one(client, [good, bad])
    assert isinstance(failed, Failed) and client.stats.last_error == failed.reason
    assert client.ring.free_rows == 100 and client.stats.failed == 1
    assert isinstance(fetch_one(client, [good]), Fetched)
    assert client.pid == pid and client.stats.restarts == 0


@settings(deadline=None)
@given(st.lists(st.integers(0, 4000), max_size=12), st.integers(1, 6))
def test_shares_cover_every_row_once(rows: list[int], threads: int) -> None:
    items = [Gather(layer, layer % 3, count) for layer, count in enumerate(rows)]
    shares = cut(items, threads)
    assert len(shares) <= threads
    owner = [(item.layer, item.head) for item in items for _ in range(item.rows)]
    found = [(p.low, p.high, p.layer, p.head) for share in shares for p in share]
    assert [row for low, high, *_ in found for row in range(low, high)] == list(range(len(owner)))
    assert all(set(owner[low:high]) == {(layer, head)} for low, high, layer, head in found)
