"""A worker that dies or stalls costs its tickets, never a wrong answer, and is replaced."""

from __future__ import annotations

import gc
import logging
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transfer_helpers import (
    Clock,
    Connect,
    all_free,
    ask,
    check_scored,
    check_serves,
    plain_item,
    poison,
    poll_until,
    random_items,
    wait_all,
    wait_up,
    what_others_can_open,
)
from waiting import PATIENCE_S, wait_for

from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer.client import Failed, RetrievalClient, Scored
from hetero_sglang.transfer.process import WorkerProcess


def ended(pid: int) -> bool:
    """The process is gone, or dead and only waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def some(client: RetrievalClient, store: HostStore, rng: random.Random) -> int:
    """Ticket of a request."""
    ticket = ask(client, torch.randint(0, store.rows, (60,)), random_items(rng, store, 5, 60))
    assert ticket is not None
    return ticket


def test_a_worker_killed_at_work_fails_its_tickets_and_is_back(
    store: HostStore, connect: Connect, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(store)
    took = []
    for round_ in range(3):
        lost = client.pid
        assert lost is not None
        os.kill(lost, signal.SIGSTOP)  # so that it can answer none
        tickets = [some(client, store, rng) for _ in range(4)]
        os.kill(lost, signal.SIGKILL)
        with caplog.at_level(logging.WARNING):
            done = wait_all(client, tickets)
        assert all(isinstance(failed, Failed) and "signal 9" in failed.reason for failed in done.values())
        since = time.monotonic()
        poll_until(client, lambda _: client.up)
        took.append(time.monotonic() - since)
        assert client.pid != lost
        assert client.restarts == round_ + 1
        assert all_free(client)
        check_serves(client, store, rng)
    assert len(caplog.records) == 3, "one sentence each"
    assert min(took) < 5.0  # the promise; the best of three, for machines that are busy with other tests


def test_kills_at_any_moment_give_right_answers_or_none(store: HostStore, connect: Connect, rng: random.Random) -> None:
    client = connect(store)
    for _ in range(4):
        assert wait_up(client)
        poison(client)
        rounds = [(torch.randint(0, store.rows, (900,)), random_items(rng, store, 10, 900)) for _ in range(3)]
        tickets = [ask(client, *asked) for asked in rounds]
        assert None not in tickets
        time.sleep(rng.random() * 0.008)
        killed = client.pid
        os.kill(killed or 0, signal.SIGKILL)
        for ticket, done in wait_all(client, tickets).items():
            if isinstance(done, Scored):
                check_scored(store, *rounds[tickets.index(ticket)], done)
        poll_until(client, lambda _, killed=killed: client.pid != killed)
        client._supervisor._delay = 0.2  # not the law under test
    assert wait_up(client) and all_free(client)
    check_serves(client, store, rng)


@pytest.mark.parametrize("busy", [True, False])
def test_a_stalled_worker_is_replaced(
    busy: bool, store: HostStore, connect: Connect, rng: random.Random, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    client = connect(store, timeout_s=100, clock=clock)
    stalled = client.pid
    os.kill(stalled or 0, signal.SIGSTOP)
    clock.hold()
    if busy:
        some(client, store, rng)
    for seconds in (20.1, 19.9, 19.9, 19.9):  # after 20 s it is asked for a sign of life, and has 60 to give it
        assert client.poll() == [] and client.pid == stalled
        clock.skew += seconds
    assert client.poll() == [] and client.pid == stalled
    clock.skew += 1
    failures = client.poll()
    assert [type(done) for done in failures] == [Failed] * busy
    assert "did not answer" in caplog.text
    clock.go_on()
    poll_until(client, lambda _: client.up and client.pid != stalled)
    assert ended(stalled or 0)
    check_serves(client, store, rng)


def replace_stalled(
    client: RetrievalClient, store: HostStore, rng: random.Random, skew: list[float], idle: float
) -> tuple[float, float]:
    """Seconds from a request that a stopped worker leaves to its end, and to when another is up."""
    stalled = client.pid
    os.kill(stalled or 0, signal.SIGSTOP)
    skew[0] += idle
    since = time.monotonic()
    some(client, store, rng)
    poll_until(client, lambda _: client.pid != stalled)
    condemned = time.monotonic() - since
    poll_until(client, lambda _: client.up)
    replaced = time.monotonic() - since
    assert ended(stalled or 0)
    check_serves(client, store, rng)
    return condemned, replaced


@pytest.mark.parametrize("idle", [0.0, 30.0])
def test_a_stalled_worker_is_replaced_within_five_seconds_of_the_request_it_leaves(
    idle: float, store: HostStore, connect: Connect, rng: random.Random
) -> None:
    """In real time, with the timeout that servers have; `idle`: seconds without a poll before the request."""
    replaced = 5.0
    for _ in range(3):  # the best of three, for machines that are busy
        if replaced >= 5:
            skew = [0.0]
            client = connect(store, timeout_s=5.0, clock=lambda skew=skew: time.monotonic() + skew[0])
            condemned, replaced = replace_stalled(client, store, rng, skew, idle)
            print(f"condemned after {condemned:.2f} s, replaced after {replaced:.2f} s")
            assert condemned > 2.9, "it had its time"
    assert replaced < 5


def test_a_busy_scheduler_does_not_blame_the_worker(store: HostStore, connect: Connect, rng: random.Random) -> None:
    skew = [0.0]
    client = connect(store, clock=lambda: time.monotonic() + skew[0])
    some(client, store, rng)
    arrived = client._supervisor.worker
    assert arrived is not None
    poll = select.poll()  # select knows no descriptor above 1023, which a long run of tests may come to
    poll.register(arrived._socket, select.POLLIN)
    wait_for(lambda: poll.poll(0), "the answer did not come")
    skew[0] += 1000  # a long prefill: nobody polled meanwhile
    (done,) = client.poll()
    assert isinstance(done, Scored) and client.restarts == 0


def test_memory_a_killed_worker_may_still_write_is_not_lent(
    store: HostStore, connect: Connect, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    skew = [0.0]
    client = connect(store, clock=lambda: time.monotonic() + skew[0])
    os.kill(client.pid or 0, signal.SIGSTOP)
    ticket = some(client, store, rng)
    lent = list(client._scratch._lent)
    assert len(lent) == 1
    with monkeypatch.context() as patch:
        patch.setattr(WorkerProcess, "gone", lambda self: False)  # killed, but the kernel takes its time
        skew[0] += PATIENCE_S + 1
        assert client.poll() == []  # it is asked for a sign of life
        skew[0] += PATIENCE_S + 1
        assert isinstance(wait_all(client, [ticket])[ticket], Failed)
        for _ in range(50):
            skew[0] += 1
            assert client.poll() == [] and ask(client, torch.arange(3), [plain_item(store)]) is None
        assert client._scratch._lent == lent and client.pid is None
    assert wait_up(client) and all_free(client)
    check_serves(client, store, rng)


@pytest.mark.parametrize("command", [["/nowhere/python"], [sys.executable, "-c", "raise SystemExit(3)"]])
def test_without_a_worker_requests_are_refused_and_it_is_told(
    command: list[str], store: HostStore, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(store, up=False, command=command)

    def told() -> bool:
        assert client.poll() == [] and not client.up
        return "exited with code 3" in caplog.text or "cannot be started" in caplog.text

    wait_for(told, "nobody told why there is no worker")
    assert ask(client, torch.arange(3), [plain_item(store)]) is None
    assert ask(client, torch.arange(0), []) is None
    assert client.poll() == [] and not client.up
    assert all_free(client)


def test_ctrl_c_leaves_the_worker_alone(store: HostStore, connect: Connect, rng: random.Random) -> None:
    client = connect(store)
    pid = client.pid
    for _ in range(3):
        os.kill(pid or 0, signal.SIGINT)
        check_serves(client, store, rng)
    assert client.pid == pid and client.restarts == 0


def test_close_ends_the_worker_and_frees_its_channel_and_memory(store: HostStore, connect: Connect) -> None:
    gc.collect()  # what earlier tests have left open is not closed meanwhile
    before = set(os.listdir("/proc/self/fd"))
    client = connect(store)
    pid = client.pid
    assert set(os.listdir("/proc/self/fd")) > before
    client.close()
    client.close()
    assert ended(pid or 0) and client.poll() == []
    assert ask(client, torch.arange(3), [plain_item(store)]) is None
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_forgotten_client_takes_its_worker_along(store: HostStore) -> None:
    client = RetrievalClient(store)
    assert wait_up(client)
    pid = client.pid
    del client
    gc.collect()
    wait_for(lambda: ended(pid or 0), "the worker runs")


PARENT = """
import os, signal, sys, time, torch
from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer.client import RetrievalClient
from hetero_sglang.transfer.protocol import Query
store = HostStore(100_000, [4], 64, 64, torch.bfloat16)
client = RetrievalClient(store)
while sys.argv[1] != "starting" and not client.up:
    client.poll()
    time.sleep(0.005)
if sys.argv[1] == "busy":
    items = [Query(0, head, 1000) for head in range(4)]
    assert client.score(torch.randint(0, 100_000, (2_000_000,)), items, torch.ones(4, 8, 64), 5) is not None
if sys.argv[1] == "stopped":
    os.kill(client.pid, signal.SIGSTOP)
print(client.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("doing", ["busy", "stopped", "starting"])
def test_nothing_outlives_a_killed_parent(doing: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, doing], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            worker = int(parent.stdout.readline())
            for pid in (parent.pid, worker)[: 1 if doing == "starting" else 2]:
                maps = Path(f"/proc/{pid}/maps").read_text()
                assert "/memfd:hetero-host-store" in maps
            assert what_others_can_open(parent.pid) == what_others_can_open(worker) == []
        finally:  # it sleeps on, and leaving its block waits for it
            parent.kill()
    wait_for(lambda: ended(worker), "the worker runs")


def test_the_worker_needs_neither_torch_nor_sglang() -> None:
    check = (
        "import sys, hetero_sglang.transfer.worker, hetero_sglang.transfer.service; "
        "print(sorted({'torch', 'sglang', 'triton'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
