"""What the worker's tests share: stores of random rows, oracles, and a polling loop."""

from __future__ import annotations

import os
import random
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from waiting import PATIENCE_S, wait_for

from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer.client import Failed, RetrievalClient, Scored
from hetero_sglang.transfer.protocol import Query

Connect = Callable[..., RetrievalClient]
ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """Real time and a `skew`. Held, it stands still but for that: a busy machine does not use up what a test allows."""

    def __init__(self) -> None:
        self.skew = 0.0
        self._held: float | None = None

    def __call__(self) -> float:
        return self.skew + (time.monotonic() if self._held is None else self._held)

    def hold(self) -> None:
        self._held = time.monotonic()

    def go_on(self) -> None:
        self._held = None


@dataclass(frozen=True)
class ScoreItem:
    """A head's question; those of one request have as many queries [G, D] and the same `pool`."""

    layer: int
    head: int
    query: torch.Tensor
    topk: int
    pool: int


def ask(client: RetrievalClient, slots: torch.Tensor | np.ndarray, items: Sequence[ScoreItem]) -> int | None:
    """The ticket of a request."""
    queries = torch.stack([item.query for item in items]) if items else torch.empty(0, 1, 4)
    wanted = [Query(item.layer, item.head, item.topk) for item in items]
    return client.score(slots, wanted, queries, items[0].pool if items else 1)


def random_store(
    rng: random.Random, dtype: torch.dtype, rows: int = 500, heads: Sequence[int] | None = None
) -> HostStore:
    """A store of random shape and contents; some layers may have no compressed heads."""
    if heads is None:
        heads = [rng.randint(0, 4) for _ in range(rng.randint(1, 5))] + [rng.randint(1, 4)]
    store = HostStore(rows, heads, rng.randint(1, 20), rng.randint(1, 20), dtype)
    for view in store.blocks:
        view.copy_(torch.randn(view.shape))
    return store


def held(store: HostStore, layer: int) -> torch.Tensor:
    """A copy [slots, C, D + Dv] of what a layer holds."""
    return store.blocks[layer].transpose(1, 2).flatten(0, 1)


def biggest_layer(store: HostStore) -> int:
    """The layer with the most compressed heads."""
    return max(range(len(store.heads)), key=store.heads.__getitem__)


def random_items(rng: random.Random, store: HostStore, count: int, length: int) -> list[ScoreItem]:
    """Items of random heads for `length` slots."""
    layers = [layer for layer, heads in enumerate(store.heads) if heads]
    items, group, pool = [], rng.randint(1, 5), rng.choice([1, 3, 7])
    for _ in range(count):
        layer, query = rng.choice(layers), torch.randn(group, store.head_dim)
        head, topk = rng.randrange(store.heads[layer]), rng.choice([1, 7, 100, length, length + 5])
        items.append(ScoreItem(layer, head, query, topk, pool))
    return items


def oracle(store: HostStore, slots: torch.Tensor, item: ScoreItem) -> torch.Tensor:
    """Pooled scores [L] in double precision."""
    keys = held(store, item.layer)[slots, item.head, : store.head_dim].double()
    weights = torch.softmax(item.query.double() @ keys.T, dim=-1)
    pooled = F.avg_pool1d(weights[None], item.pool, 1, item.pool // 2, count_include_pad=False)[0]
    return pooled.amax(dim=0)


def check_scored(store: HostStore, slots: torch.Tensor, items: Sequence[ScoreItem], done: Scored | Failed) -> None:
    """AssertionError unless these are the best of `slots` for each item, by the oracle."""
    assert isinstance(done, Scored), done
    for item, positions, scores in zip(items, done.positions, done.scores, strict=True):
        wanted = oracle(store, slots, item)
        count = min(item.topk, len(slots))
        assert positions.dtype == torch.int32 and scores.dtype == torch.float32
        assert positions.shape == scores.shape == (count,)
        assert bool((positions[1:] > positions[:-1]).all())
        # Rounding may swap rows of nearly equal score, so rows are judged by their true score.
        best = wanted.topk(count).values
        for found in (wanted[positions.long()], scores.double()):
            torch.testing.assert_close(found.sort(descending=True).values, best, rtol=1e-4, atol=1e-9)


def poison(client: RetrievalClient) -> None:
    """What the worker does not write must not look right by chance."""
    np.frombuffer(client._scratch.memory.buffer, np.uint8)[: 1 << 20] = np.random.default_rng().integers(0, 255)


def poll_until(client: RetrievalClient, done: Callable[[list[Scored | Failed]], bool]) -> list[Scored | Failed]:
    """Poll until `done` holds of everything completed so far, or fail."""
    completions: list[Scored | Failed] = []

    def polled() -> bool:
        completions.extend(client.poll())
        return done(completions)

    wait_for(polled, lambda: f"there is no more than {completions}, restarts: {client.restarts}", 0.002)
    return completions


def wait_up(client: RetrievalClient) -> bool:
    """Poll until its worker is up, or the time is over; when no ticket is out yet."""
    end = time.monotonic() + PATIENCE_S
    while not client.up and time.monotonic() < end:
        client.poll()
        time.sleep(0.005)
    return client.up


def wait_all(client: RetrievalClient, tickets: Sequence[int]) -> dict[int, Scored | Failed]:
    """Every ticket's completion; each ticket completes exactly once."""
    completions = poll_until(client, lambda found: {done.ticket for done in found} >= set(tickets))
    assert sorted(done.ticket for done in completions) == sorted(tickets)
    return {done.ticket: done for done in completions}


def score_one(client: RetrievalClient, slots: torch.Tensor, items: Sequence[ScoreItem]) -> Scored | Failed:
    """Submit and wait."""
    ticket = ask(client, slots, items)
    assert ticket is not None
    return wait_all(client, [ticket])[ticket]


def check_serves(client: RetrievalClient, store: HostStore, rng: random.Random) -> None:
    """AssertionError unless its worker ranks rightly."""
    poison(client)
    slots = torch.randint(0, store.rows, (rng.randint(1, 60),))
    items = random_items(rng, store, 5, len(slots))
    check_scored(store, slots, items, score_one(client, slots, items))


def plain_item(store: HostStore, topk: int = 4) -> ScoreItem:
    """The first head of the biggest layer, looked at by one query of ones."""
    return ScoreItem(biggest_layer(store), 0, torch.ones(1, store.head_dim), topk, 1)


def all_free(client: RetrievalClient) -> bool:
    """No memory is lent to a request."""
    return not client._scratch._lent


def socket_inodes(pid: int) -> set[str]:
    """Of the sockets that a process holds."""
    return {target[len("socket:[") : -1] for target in _open_files(pid) if target.startswith("socket:[")}


def listening() -> set[str]:
    """Inodes of all sockets that have a name, or a port."""
    unix = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    found = {fields[6] for fields in unix if len(fields) > 7}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        path = Path("/proc/net", table)
        found |= {line.split()[9] for line in path.read_text().splitlines()[1:]} if path.exists() else set()
    return found


def what_others_can_open(pid: int) -> list[str]:
    """Sockets with names, shared memory and temporary files of a process: what could outlive it, too."""
    places = ("/dev/shm", tempfile.gettempdir())
    # an environment and a checkout may lie in a temporary folder
    code = tuple(f"{os.path.realpath(path)}/" for path in (sysconfig.get_path("platlib"), ROOT))
    maps = [line.split(maxsplit=5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    named = [name for name in _open_files(pid) + maps if not name.endswith("(deleted)")]
    files = [name for name in named if name.startswith(places) and not name.startswith(code)]
    return files + sorted(socket_inodes(pid) & listening())


def _open_files(pid: int) -> list[str]:
    found = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
        except FileNotFoundError:  # closed meanwhile
            continue
    return found
