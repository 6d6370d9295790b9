"""The worker's choice of rows is that of a plain torch computation."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_helpers import (
    Connect,
    ScoreItem,
    all_free,
    ask,
    biggest_layer,
    check_scored,
    plain_item,
    poison,
    random_items,
    random_store,
    score_one,
    wait_all,
)

from hetero_sglang.cache.host_layout import BLOCK
from hetero_sglang.cache.host_store import HostStore, put_rows
from hetero_sglang.transfer import client as client_module
from hetero_sglang.transfer import scoring
from hetero_sglang.transfer.client import Failed, Scored


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_scores_equal_the_oracle(dtype: torch.dtype, threads: int, rng: random.Random, connect: Connect) -> None:
    store = random_store(rng, dtype, rows=3000)
    client = connect(store, threads=threads)
    for length, count in ((1, 1), (9, 2), (400, 3), (20_000, 1), (8193, 2)):
        items, slots = random_items(rng, store, count, length), torch.randint(0, store.rows, (length,))
        ticket = ask(client, slots if rng.random() < 0.5 else slots.numpy(), items)
        assert ticket is not None
        check_scored(store, slots, items, wait_all(client, [ticket])[ticket])
    assert all_free(client)


def test_requests_under_way_at_once_are_each_answered_rightly(
    store: HostStore, connect: Connect, rng: random.Random
) -> None:
    client = connect(store, threads=3)
    for _ in range(20):
        poison(client)
        rounds = []
        for length in (rng.randint(1, 2000) for _ in range(rng.randint(2, 8))):
            rounds.append(
                (torch.randint(0, store.rows, (length,)), random_items(rng, store, rng.randint(0, 5), length))
            )
        tickets = [ask(client, *asked) for asked in rounds]
        assert None not in tickets
        done = wait_all(client, tickets)
        for asked, ticket in zip(rounds, tickets, strict=True):
            check_scored(store, *asked, done[ticket])
        assert all_free(client)


def test_a_ranking_sees_what_was_written_before_it(store: HostStore, connect: Connect) -> None:
    client, layer = connect(store), biggest_layer(store)
    slots, item = torch.tensor([3, 1, 4]), ScoreItem(layer, 0, torch.ones(1, store.head_dim), 3, 1)
    for _ in range(20):
        k = torch.randn(3, store.heads[layer], store.head_dim).to(store.dtype)
        v = torch.randn(3, store.heads[layer], store.v_head_dim).to(store.dtype)
        put_rows(store.blocks[layer], slots, torch.cat((k, v), -1))
        done = score_one(client, slots, [item])
        assert isinstance(done, Scored)
        wanted = torch.softmax(k[:, 0].double().sum(1), 0)
        torch.testing.assert_close(done.scores[0].double(), wanted, rtol=1e-4, atol=1e-9)


def test_full_memory_refuses_and_an_answer_makes_room(
    store: HostStore, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_SCRATCH", 8192)
    client = connect(store)
    item, length = plain_item(store), 4096 // 4 - store.head_dim  # a page, with the query
    first, second = (ask(client, torch.zeros(length), [item]) for _ in range(2))
    assert first is not None and second is not None and first != second
    assert ask(client, torch.zeros(1), [item]) is None
    assert all(isinstance(done, Scored) for done in wait_all(client, [first, second]).values())
    assert isinstance(score_one(client, torch.zeros(2 * length), [item]), Scored)
    assert ask(client, torch.zeros(2 * length + store.head_dim + 1), [item]) is None
    wide = [plain_item(store, topk=length)] * 4  # whose answer is longer than the question
    assert ask(client, torch.zeros(length), wide) is None
    assert all_free(client)


@pytest.mark.parametrize("wrong", ["layer", "head", "empty layer", "slot", "negative slot"])
def test_what_does_not_exist_fails_alone(wrong: str, rng: random.Random, connect: Connect) -> None:
    store = random_store(rng, torch.float16, heads=[2, 0])
    client = connect(store)
    pid, query, slots = client.pid, torch.ones(1, store.head_dim), torch.arange(5)
    good = ScoreItem(0, 1, query, 3, 1)
    layer, head, slot = {
        "layer": (2, 0, 1), "head": (0, 2, 1), "empty layer": (1, 0, 1), "slot": (0, 0, store.rows),
        "negative slot": (0, 0, -1),
    }[wrong]  # fmt: skip
    failed = score_one(client, torch.tensor([1, slot]), [good, ScoreItem(layer, head, query, 3, 1)])
    assert isinstance(failed, Failed) and all_free(client)
    assert isinstance(score_one(client, slots, [good]), Scored)
    assert client.pid == pid and client.restarts == 0


def test_keys_of_another_dtype_fail(rng: random.Random, connect: Connect) -> None:
    store = HostStore(9, [1], 4, 4, torch.int16)
    client = connect(store)
    failed = score_one(client, torch.arange(9), [plain_item(store)])
    assert isinstance(failed, Failed) and "int16" in failed.reason and client.restarts == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_fail(value: float, rng: random.Random, connect: Connect) -> None:
    store = random_store(rng, torch.bfloat16)
    layer = biggest_layer(store)
    store.blocks[layer][17 // BLOCK, :, 17 % BLOCK] = value
    client = connect(store)
    query = torch.ones(1, store.head_dim)
    tickets = [ask(client, torch.tensor(slots), [ScoreItem(layer, 0, query, 2, 1)]) for slots in ([16, 17], [16, 18])]
    assert None not in tickets
    done = wait_all(client, tickets)
    assert isinstance(done[tickets[0]], Failed) and isinstance(done[tickets[1]], Scored)
    assert client.restarts == 0


@pytest.mark.parametrize("pool", [0, 2, 4])
def test_an_even_pooling_width_fails(pool: int, rng: random.Random, connect: Connect) -> None:
    store = random_store(rng, torch.bfloat16, heads=[1])
    client = connect(store)
    done = score_one(client, torch.arange(9), [ScoreItem(0, 0, torch.ones(1, store.head_dim), 2, pool)])
    assert isinstance(done, Failed) and "odd" in done.reason


def test_scores_of_nothing_are_nothing(rng: random.Random, connect: Connect) -> None:
    store = random_store(rng, torch.bfloat16, heads=[1])
    client = connect(store)
    query = torch.ones(1, store.head_dim)
    for length, topks, counts in ((0, [5], [0]), (4, [0, 2], [0, 2]), (4, [], [])):
        done = score_one(client, torch.arange(length), [ScoreItem(0, 0, query, topk, 3) for topk in topks])
        assert isinstance(done, Scored)
        assert [len(positions) for positions in done.positions] == counts


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=40), st.integers(0, 45))
def test_best_are_the_first_of_the_stable_descending_order(scores: list[int], topk: int) -> None:
    values = np.array(scores, np.float64)
    assert scoring.best(values, topk).tolist() == sorted(np.argsort(-values, kind="stable")[:topk].tolist())


@settings(deadline=None)
@given(st.integers(1, 40), st.sampled_from([1, 3, 5, 7, 51]))
def test_average_is_torchs_pooling(length: int, pool: int) -> None:
    weights = np.random.default_rng().random((3, length))
    padded = F.pad(torch.from_numpy(weights), (pool // 2, pool // 2), value=float("nan"))
    wanted = padded.unfold(-1, pool, 1).nanmean(dim=-1)  # [3, length]
    np.testing.assert_allclose(scoring.average(weights, pool), wanted.numpy(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=["e4m3", "e5m2"])
def test_every_number_of_8_bits_is_read_as_torch_reads_it(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    read = scoring.to_float32(every.numpy(), str(dtype).removeprefix("torch."))
    np.testing.assert_array_equal(read, every.view(dtype).float().numpy())
