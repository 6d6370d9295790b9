"""Whatever comes up the channel, the client's books stay right: tickets, staging rows, what it hands out."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import msgspec
import torch
from retrieval_helpers import Connect

from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer import protocol
from hetero_sglang.transfer.client import Failed, Fetched, FetchItem, ScoreItem
from hetero_sglang.transfer.protocol import Done, Error, Hello, Pong, ProtocolError, Scored, pack

SLOW = [sys.executable, str(Path(__file__).with_name("fake_worker.py")), "slow"]


def hostile(rng: random.Random, own: int, fetch: int, score: int, echoes: tuple[int, int]) -> bytes:
    """A reply that is never the right one: truncated, of wrong types, stale, about other rows or tickets."""
    ticket, echo = rng.choice([(fetch, echoes[0]), (score, echoes[1])])
    good = [
        Done(own, fetch, 70, echoes[0]),
        Scored(own, score, [4], echoes[1]),
        Pong(own, 1),
        Hello(own),
        Error(own, fetch, "no"),
    ]
    kind = rng.randrange(8)
    if kind == 0:
        message = pack(rng.choice(good))
        return message[: rng.randrange(len(message))]
    if kind == 1:
        return pack(rng.choice(good)) + rng.randbytes(rng.randrange(1, 9))
    if kind == 2:
        return rng.randbytes(rng.randrange(60))
    if kind == 3:  # stale: of an earlier or later incarnation
        stale = own + rng.choice([-1, 1, 2**30])
        return pack(msgspec.structs.replace(rng.choice(good), incarnation=max(0, stale)))
    if kind == 4:  # another's
        other = max(fetch, score) + rng.randrange(1, 2**20)
        return pack(msgspec.structs.replace(rng.choice([good[0], good[1], good[4]]), ticket=other))
    if kind == 5:
        rows = rng.choice([0, 69, 71, 2**40])
        return pack(Done(own, ticket, rows, echo)) if rng.random() < 0.5 else pack(Done(own, fetch, 70, echo ^ 1 << 8))
    if kind == 6:
        counts = rng.choice([[], [3], [5], [4, 0], [2**40], [0]])
        return pack(Scored(own, ticket, counts, echo))
    wrong = msgspec.to_builtins(rng.choice(good))
    wrong[rng.choice([key for key in wrong if key != "reason"])] = rng.choice(
        [None, -7, 1.5, "x", [[]], {}, True, 2**63]
    )
    return msgspec.msgpack.encode(wrong)


def test_100_000_hostile_replies_change_nothing(store: HostStore, connect: Connect, rng: random.Random) -> None:
    client = connect(store, command=SLOW)
    worker = client._supervisor.worker
    assert worker is not None
    layer = max(range(len(store.heads)), key=store.heads.__getitem__)
    fetch = client.fetch([FetchItem(layer, 0, torch.arange(70))])
    score = client.score(torch.arange(9), [ScoreItem(layer, 0, torch.ones(1, store.head_dim), 4, 1)])
    assert fetch is not None and score is not None
    before, tickets, stats = client.ring.memory.buffer[:], dict(client._pending), client.stats
    echoes = (tickets[fetch].echo, tickets[score].echo)
    for _ in range(100_000):
        message = hostile(rng, worker.incarnation, fetch, score, echoes)
        try:
            completion = client._take(worker, message)
        except ProtocolError:
            continue
        raise AssertionError(f"{message!r} completed {completion}")
    assert client._pending == tickets and client.stats == stats
    assert client.ring.memory.buffer[:] == before
    for ring in (client.ring, client.score_ring):
        ring.check_integrity()
    done = client._take(worker, pack(Done(worker.incarnation, fetch, 70, echoes[0])))
    assert isinstance(done, Fetched) and done.k.shape[0] == 70
    client.release(fetch)
    assert isinstance(client._take(worker, pack(Error(worker.incarnation, score, "no"))), Failed)
    assert client.ring.free_rows == client.ring.rows and client.score_ring.free_rows == client.score_ring.rows


def test_a_list_of_billions_is_not_a_message() -> None:
    for head in (b"\xdd\xff\xff\xff\xff", pack(Scored(1, 1, [], 1))[:-6] + b"\xdd\xff\xff\xff\xff"):
        for read in (protocol.read_reply, protocol.read_request):
            try:
                read(head)
            except ProtocolError:
                continue
            raise AssertionError("it was read")
