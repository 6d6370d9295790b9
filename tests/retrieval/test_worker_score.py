"""The worker's choice of rows is that of a plain torch computation."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval_helpers import Connect, held, random_store, wait_all

from hetero_sglang.cache.host_store import BLOCK, HostStore
from hetero_sglang.transfer import scoring
from hetero_sglang.transfer.client import Failed, Scored, ScoreItem


def oracle(store: HostStore, slots: torch.Tensor, item: ScoreItem) -> torch.Tensor:
    """Pooled scores [L] in double precision."""
    keys = held(store, item.layer)[slots, item.head, : store.head_dim].double()
    weights = torch.softmax(torch.as_tensor(item.query).double() @ keys.T, dim=-1)
    pooled = F.avg_pool1d(weights[None], item.pool, 1, item.pool // 2, count_include_pad=False)[0]
    return pooled.amax(dim=0)


def random_score(rng: random.Random, store: HostStore, length: int) -> ScoreItem:
    layer = rng.choice([layer for layer, heads in enumerate(store.heads) if heads])
    query = torch.randn(rng.randint(1, 5), store.head_dim)
    return ScoreItem(
        layer=layer,
        head=rng.randrange(store.heads[layer]),
        query=query if rng.random() < 0.5 else query.numpy(),
        topk=rng.choice([1, 7, 100, length, length + 5]),
        pool=rng.choice([1, 3, 7]),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_scores_equal_the_oracle(dtype: torch.dtype, rng: random.Random, connect: Connect) -> None:
    store = random_store(rng, dtype, rows=3000)
    client = connect(store, staging_rows=10)
    for length, count in ((1, 1), (9, 2), (400, 3), (20_000, 1), (8193, 2)):
        items = [random_score(rng, store, length) for _ in range(count)]
        slots = torch.randint(0, store.rows, (length,))
        ticket = client.score(slots if rng.random() < 0.5 else slots.numpy(), items)
        assert ticket is not None
        done = wait_all(client, [ticket])[ticket]
        assert isinstance(done, Scored), done
        for item, positions, scores in zip(items, done.positions, done.scores, strict=True):
            wanted = oracle(store, slots, item)
            count = min(item.topk, length)
            assert positions.dtype == torch.int32 and scores.dtype == torch.float32
            assert positions.shape == scores.shape == (count,)
            assert bool((positions[1:] > positions[:-1]).all())
            # Rounding may swap rows of nearly equal score, so rows are judged by their true score.
            best = wanted.topk(count).values
            for found in (wanted[positions.long()], scores.double()):
                torch.testing.assert_close(found.sort(descending=True).values, best, rtol=1e-4, atol=1e-9)
    assert client.stats.scores == 5 and client.stats.fetches == 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_fail(poison: float, rng: random.Random, connect: Connect) -> None:
    store = random_store(rng, torch.bfloat16)
    layer = max(range(len(store.heads)), key=store.heads.__getitem__)
    store.blocks[layer][17 // BLOCK, :, 17 % BLOCK] = poison
    client = connect(store, staging_rows=10)
    query = torch.ones(1, store.head_dim)
    tickets = [client.score(torch.tensor(slots), [ScoreItem(layer, 0, query, 2, 1)]) for slots in ([16, 17], [16, 18])]
    assert None not in tickets
    done = wait_all(client, tickets)
    assert isinstance(done[tickets[0]], Failed) and isinstance(done[tickets[1]], Scored)
    assert client.stats.restarts == 0


@pytest.mark.parametrize("pool", [0, 2, 4])
def test_an_even_pooling_width_fails(pool: int, rng: random.Random, connect: Connect) -> None:
    store = random_store(rng, torch.bfloat16, heads=[1])
    client = connect(store, staging_rows=10)
    ticket = client.score(torch.arange(9), [ScoreItem(0, 0, torch.ones(1, store.head_dim), 2, pool)])
    assert ticket is not None
    done = wait_all(client, [ticket])[ticket]
    assert isinstance(done, Failed) and "odd" in done.reason


def test_scores_of_nothing_are_nothing(rng: random.Random, connect: Connect) -> None:
    store = random_store(rng, torch.bfloat16, heads=[1])
    client = connect(store, staging_rows=10)
    query = torch.ones(1, store.head_dim)
    for length, topks, counts in ((0, [5], [0]), (4, [0, 2], [0, 2]), (4, [], [])):
        ticket = client.score(torch.arange(length), [ScoreItem(0, 0, query, topk, 3) for topk in topks])
        assert ticket is not None
        done = wait_all(client, [ticket])[ticket]
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
