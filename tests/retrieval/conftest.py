from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from retrieval_helpers import random_store

from hetero_sglang.memory.host_store import HostStore
from hetero_sglang.retrieval.client import RetrievalClient


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
def connect(store: HostStore) -> Iterator[Callable[..., RetrievalClient]]:
    """Makes clients of `store` that are closed afterwards."""
    clients: list[RetrievalClient] = []

    def make(staging_rows: int = 2000, **options: object) -> RetrievalClient:
        clients.append(RetrievalClient(store, staging_rows, **options))  # type: ignore[arg-type]
        return clients[-1]

    yield make
    for client in clients:
        client.close()
