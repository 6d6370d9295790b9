"""Whatever comes up the channel, the client's books stay right: tickets, memory, what it hands out."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import msgspec
import torch
from transfer_helpers import Connect, all_free, ask, plain_item

from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer import protocol
from hetero_sglang.transfer.client import Failed
from hetero_sglang.transfer.client import Scored as Answer
from hetero_sglang.transfer.protocol import Error, Hello, Pong, ProtocolError, Scored, pack

SLOW = [sys.executable, str(Path(__file__).with_name("fake_worker.py")), "slow"]


def hostile(rng: random.Random, tickets: dict[int, int]) -> bytes:
    """A reply that is never the right one: truncated, of wrong types, about other rows or tickets.

    tickets: the echo of each request; 4 rows of one item are due.
    """
    ticket = rng.choice(list(tickets))
    echo = tickets[ticket]
    good = [Scored(ticket, [4], echo), Pong(1), Hello(), Error(ticket, "no")]
    kind = rng.randrange(7)
    if kind == 0:
        message = pack(rng.choice(good))
        return message[: rng.randrange(len(message))]
    if kind == 1:
        return pack(rng.choice(good)) + rng.randbytes(rng.randrange(1, 9))
    if kind == 2:
        return rng.randbytes(rng.randrange(60))
    if kind == 3:  # another's
        other = max(tickets) + rng.randrange(1, 2**20)
        return pack(msgspec.structs.replace(rng.choice([good[0], good[3]]), ticket=other))
    if kind == 4:  # the answer to another of our requests, or to none
        others = [tickets[other] for other in tickets if other != ticket]
        return pack(Scored(ticket, [4], rng.choice([*others, echo ^ 1 << rng.randrange(32)])))
    if kind == 5:
        counts = rng.choice([[], [3], [5], [4, 0], [2**40], [0]])
        return pack(Scored(ticket, counts, echo))
    wrong = msgspec.to_builtins(rng.choice(good))
    wrong[rng.choice([key for key in wrong if key != "reason"])] = rng.choice(
        [None, -7, 1.5, "x", [[]], {}, True, 2**63]
    )
    return msgspec.msgpack.encode(wrong)


def test_100_000_hostile_replies_change_nothing(store: HostStore, connect: Connect, rng: random.Random) -> None:
    client = connect(store, command=SLOW)
    worker = client._supervisor.worker
    assert worker is not None
    first, second = (ask(client, torch.arange(length), [plain_item(store)]) for length in (70, 9))
    assert first is not None and second is not None
    memory, pending = client._scratch.memory.buffer, dict(client._pending)
    before, lent = memory[:], list(client._scratch._lent)
    for _ in range(100_000):
        message = hostile(rng, {ticket: pending[ticket].echo for ticket in (first, second)})
        try:
            reply = worker._read(message)
            completion = reply and client._take(reply)
        except ProtocolError:
            continue
        raise AssertionError(f"{message!r} completed {completion}")
    assert client._pending == pending
    assert memory[:] == before and client._scratch._lent == lent
    wanted = torch.arange(4, dtype=torch.int32), torch.ones(4)
    protocol.put(memory, pending[first].loan.start, wanted[0].numpy(), wanted[1].numpy())
    done = client._take(Scored(first, [4], pending[first].echo))
    assert isinstance(done, Answer) and done.ticket == first
    assert torch.equal(done.positions[0], wanted[0]) and torch.equal(done.scores[0], wanted[1])
    assert isinstance(client._take(Error(second, "no")), Failed)
    assert all_free(client)


def test_a_list_of_billions_is_not_a_message() -> None:
    for head in (b"\xdd\xff\xff\xff\xff", pack(Scored(1, [], 1))[:-6] + b"\xdd\xff\xff\xff\xff"):
        for read in (protocol.read_reply, protocol.read_request):
            try:
                read(head)
            except ProtocolError:
                continue
            raise AssertionError("it was read")
