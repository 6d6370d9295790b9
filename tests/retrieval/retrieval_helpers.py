"""What the retrieval tests share: stores of random rows, oracles, and a polling loop."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer.client import Completion, FetchItem, RetrievalClient

Connect = Callable[..., RetrievalClient]

PATIENCE_S = 60.0


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


def random_items(rng: random.Random, store: HostStore, count: int, most: int = 60) -> list[FetchItem]:
    """Items of random heads; slots in any order, some twice, some items empty, numpy and torch mixed."""
    layers = [layer for layer, heads in enumerate(store.heads) if heads]
    items = []
    for _ in range(count):
        layer = rng.choice(layers)
        slots = torch.randint(0, store.rows, (rng.randint(0, most),))
        chosen = slots if rng.random() < 0.5 else slots.numpy()
        items.append(FetchItem(layer, rng.randrange(store.heads[layer]), chosen))
    return items


def held(store: HostStore, layer: int) -> torch.Tensor:
    """A copy [slots, C, D + Dv] of what a layer holds."""
    return store.blocks[layer].transpose(1, 2).flatten(0, 1)


def oracle(store: HostStore, items: Sequence[FetchItem]) -> tuple[torch.Tensor, torch.Tensor]:
    """K [N, D] and V [N, Dv] of the items, row by row."""
    rows = [held(store, item.layer)[int(slot), item.head] for item in items for slot in item.slots]
    width = store.head_dim + store.v_head_dim
    both = torch.stack(rows) if rows else torch.empty(0, width, dtype=store.dtype)
    return both[:, : store.head_dim], both[:, store.head_dim :]


def poison(client: RetrievalClient) -> None:
    """Rows the worker does not write must not look right by chance."""
    np.frombuffer(client.ring.memory.buffer, np.uint8)[:] = np.random.default_rng().integers(0, 255)


def poll_until(
    client: RetrievalClient, done: Callable[[list[Completion]], bool], patience_s: float = PATIENCE_S
) -> list[Completion]:
    """Poll until `done` holds of everything completed so far, or fail."""
    completions: list[Completion] = []
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        completions += client.poll()
        if done(completions):
            return completions
        time.sleep(0.002)
    raise AssertionError(f"not done after {patience_s} s: {completions} {client.stats}")


def wait_all(client: RetrievalClient, tickets: Sequence[int]) -> dict[int, Completion]:
    """Every ticket's completion; each ticket completes exactly once."""
    completions = poll_until(client, lambda found: {done.ticket for done in found} >= set(tickets))
    assert sorted(done.ticket for done in completions) == sorted(tickets)
    return {done.ticket: done for done in completions}


def fetch_one(client: RetrievalClient, items: Sequence[FetchItem]) -> Completion:
    """Submit, wait, and copy the rows out before their staging is released."""
    ticket = client.fetch(items)
    assert ticket is not None
    return wait_all(client, [ticket])[ticket]


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
    maps = [line.split(maxsplit=5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    files = [name for name in _open_files(pid) + maps if name.startswith(places) and not name.endswith("(deleted)")]
    return files + sorted(socket_inodes(pid) & listening())


def _open_files(pid: int) -> list[str]:
    found = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
        except FileNotFoundError:  # closed meanwhile
            continue
    return found
