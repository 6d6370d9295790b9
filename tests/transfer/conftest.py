from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transfer_helpers import Connect, random_store, wait_up
from waiting import PATIENCE_S

from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer.client import RetrievalClient


@pytest.fixture
def rng() -> random.Random:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # shown when the test fails
    torch.manual_seed(seed)
    return random.Random(seed)


@pytest.fixture
def store(rng: random.Random) -> Iterator[HostStore]:
    store = random_store(rng, rng.choice([torch.bfloat16, torch.float16, torch.float32]))
    yield store
    store.close()


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes clients that are closed afterwards; patient ones, for machines that are busy with other tests."""
    clients: list[RetrievalClient] = []

    def make(store: HostStore, up: bool = True, timeout_s: float = PATIENCE_S, **options: Any) -> RetrievalClient:
        client = RetrievalClient(store, timeout_s=timeout_s, **options)
        clients.append(client)
        assert not up or wait_up(client)
        return client

    yield make
    for client in clients:
        client.close()
