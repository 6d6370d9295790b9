"""Whatever a worker answers, only the answer to what was asked completes a ticket."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from transfer_helpers import Connect, all_free, ask, plain_item, poll_until, score_one, wait_all

from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer import process, supervisor
from hetero_sglang.transfer.client import Failed, RetrievalClient, Scored

FAKE = [sys.executable, str(Path(__file__).with_name("fake_worker.py"))]
LIES = {  # and what each is told apart by
    "unknown ticket": "ticket 1: nothing is known of it",
    "unknown ticket's error": "ticket 1: no",
    "unreadable request": "ticket -1: no",
    "other echo": "answers another request",
    "garbage": "not a message",
    "empty": "not a message",
    "a request": "not a message",
    "truncated": "not a message",
    "trailing bytes": "not a message",
    "oversize": "a message of more than 65536 bytes",
    "second hello": "a second hello",
    "pong": "a pong nobody asked for",
    "position out of range": "out of range or not ascending",
    "last position out of range": "out of range or not ascending",
    "negative position": "out of range or not ascending",
    "position twice": "out of range or not ascending",
    "descending positions": "out of range or not ascending",
    "too few": "answers another request",
    "too many": "answers another request",
    "no number": "not finite",
    "no finite number": "not finite",
    "too many items": "answers another request",
    "no items": "answers another request",
}


@pytest.fixture(autouse=True)
def _restart_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 0.01)


@pytest.mark.parametrize("mode", LIES)
def test_a_lie_fails_its_tickets_and_replaces_the_worker(
    mode: str, store: HostStore, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(store, command=[*FAKE, mode])
    liar, slots = client.pid, torch.arange(6)
    ticket = ask(client, slots, [plain_item(store)])
    assert ticket is not None
    monkeypatch.setattr(client, "_command", process.COMMAND)
    done = wait_all(client, [ticket])[ticket]
    assert isinstance(done, Failed) and "answered wrongly" in done.reason and LIES[mode] in done.reason
    poll_until(client, lambda _: client.up)
    assert client.pid != liar and client.restarts == 1
    assert all_free(client)
    assert isinstance(score_one(client, slots, [plain_item(store)]), Scored)


def test_a_worker_that_does_not_say_hello_is_never_up_and_replaced(
    store: HostStore, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(store, up=False, command=[*FAKE, "no hello"])
    stranger = client.pid
    poll_until(client, lambda _: client.pid not in (None, stranger))
    assert "first words were no hello" in caplog.text and not client.up
    assert ask(client, torch.arange(3), [plain_item(store)]) is None


def test_a_wrong_pong_replaces_the_worker(store: HostStore, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    skew = [0.0]
    client = connect(store, command=[*FAKE, "pong"], timeout_s=100, clock=lambda: time.monotonic() + skew[0])
    skew[0] += 60  # long enough to ask for a sign of life, not to call it stalled
    poll_until(client, lambda _: client.restarts == 1)
    assert "a pong nobody asked for" in caplog.text


def answered(client: RetrievalClient) -> int | None:
    """How often its worker gave the sign of life that it was asked for; None while one is due."""
    worker = client._supervisor.worker
    return worker._pongs if worker is not None and worker._pongs == worker._pings else None


def test_a_worker_that_is_long_about_a_request_keeps_it_while_it_gives_signs_of_life(
    store: HostStore, connect: Connect
) -> None:
    skew = [0.0]
    client = connect(store, command=[*FAKE, "slow"], timeout_s=100, clock=lambda: time.monotonic() + skew[0])
    slow = client.pid
    ticket = ask(client, torch.arange(3), [plain_item(store)])
    assert ticket is not None
    for asked in range(1, 20):  # 60 s each: silent for more than half its time, it is asked, and answers
        skew[0] += 60
        assert client.poll() == [] and client.pid == slow
        poll_until(client, lambda _, asked=asked: answered(client) == asked)
    skew[0] += 60  # 12 times 100 s
    (failed,) = client.poll()
    assert isinstance(failed, Failed) and failed.ticket == ticket and "at one request for 1200 s" in failed.reason


def test_a_scheduler_that_was_away_asks_before_it_judges(store: HostStore, connect: Connect) -> None:
    skew = [0.0]
    client = connect(store, command=[*FAKE, "slow"], timeout_s=100, clock=lambda: time.monotonic() + skew[0])
    slow = client.pid
    assert ask(client, torch.arange(3), [plain_item(store)]) is not None
    skew[0] += 500  # nobody polled meanwhile
    assert client.poll() == [] and client.pid == slow
    poll_until(client, lambda _: answered(client) == 1)
    assert client.restarts == 0 and client.pid == slow
