"""Scheduler and worker talk where nobody else can: their channel has no name, and only its two ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile

import pytest
import torch
from transfer_helpers import (
    Connect,
    all_free,
    ask,
    listening,
    plain_item,
    score_one,
    socket_inodes,
    wait_all,
    what_others_can_open,
)
from waiting import PATIENCE_S

from hetero_sglang.cache.host_store import HostStore
from hetero_sglang.transfer import channel, process, protocol
from hetero_sglang.transfer.client import Scored

NOBODY = 65534


def test_the_channel_has_no_name_to_connect_to(store: HostStore, connect: Connect) -> None:
    client = connect(store)
    assert client.pid is not None and client._supervisor.worker is not None
    ours = client._supervisor.worker._socket
    assert ours.family == socket.AF_UNIX and socket_inodes(client.pid), "each has an end"
    mine = str(os.fstat(ours.fileno()).st_ino)
    assert mine in socket_inodes(os.getpid()) and mine not in listening()
    assert what_others_can_open(client.pid) == []


def test_what_others_could_open_would_be_seen() -> None:
    with tempfile.NamedTemporaryFile() as file, socket.socket(socket.AF_UNIX) as named:
        named.bind(f"\0{file.name}")
        named.listen()
        found = {file.name, str(os.fstat(named.fileno()).st_ino)}
        assert found <= set(what_others_can_open(os.getpid()))
    assert not found & set(what_others_can_open(os.getpid()))


ATTACK = """
import ctypes, json, os, socket, sys
user, *pids = [int(given) for given in sys.argv[1:]]
os.setgroups([]), os.setgid(user), os.setuid(user)
libc = ctypes.CDLL(None, use_errno=True)
reached = []
for name in {line.split()[-1] for line in open("/proc/net/unix").read().splitlines()[1:] if len(line.split()) > 7}:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, kind) as end:
            try:
                end.connect("\\0" + name[1:] if name[0] == "@" else name)
                pid = int.from_bytes(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), "little")
                reached += [name] if pid in pids else []
            except OSError:
                pass
for pid in pids:
    handle = libc.syscall(434, pid, 0)  # pidfd_open
    for fd in range(64):
        stolen = libc.syscall(438, handle, fd, 0) if handle >= 0 else -1  # pidfd_getfd
        reached += [f"{pid} fd {fd}"] if stolen >= 0 else []
        try:
            os.close(os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR))
            reached.append(f"/proc/{pid}/fd/{fd}")
        except OSError:
            pass
print(json.dumps(reached))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="becoming another user takes root")
def test_another_user_finds_nothing_to_connect_to(store: HostStore, connect: Connect) -> None:
    client = connect(store)
    attack = [sys.executable, "-c", ATTACK, str(NOBODY), str(os.getpid()), str(client.pid)]
    ran = subprocess.run(attack, stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(ran.stdout) == []
    assert isinstance(score_one(client, torch.arange(5), [plain_item(store)]), Scored)


def test_a_worker_takes_orders_from_the_parent_that_made_its_channel_alone() -> None:
    """Everything else ends before a byte is read: the other end would see that."""
    made_by_another = (
        "import socket, subprocess, sys\n"
        "from hetero_sglang.transfer import channel\n"
        "ours, theirs = channel.pair()\n"
        "ours.send(b'{}')\n"
        # The shell in between is the worker's parent, and did not make the channel.
        "shell = ['sh', '-c', '\"$@\"; exit $?', 'sh', *sys.argv[1:]]\n"
        "code = subprocess.run(shell, stdin=theirs.fileno()).returncode\n"
        "assert code == 0, code\n"
        "assert theirs.recv(10) == b'{}', 'it was read'\n"
    )
    subprocess.run([sys.executable, "-c", made_by_another, *process.COMMAND], check=True, timeout=PATIENCE_S)
    stream, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with stream, far:
        stream.send(b"{}")
        assert subprocess.run(process.COMMAND, stdin=far.fileno(), timeout=PATIENCE_S).returncode == 0
        assert far.recv(10) == b"{}", "it was read"


def test_a_worker_whose_parent_closes_the_channel_ends_without_a_word() -> None:
    ours, theirs = channel.pair()
    with theirs:
        worker = subprocess.Popen(process.COMMAND, stdin=theirs.fileno(), stderr=subprocess.PIPE)
    ours.close()
    _, said = worker.communicate(timeout=PATIENCE_S)
    assert (worker.returncode, said) == (0, b"")


def test_an_empty_message_is_not_the_end() -> None:
    ours, theirs = channel.pair()
    with theirs:
        ours.send(b"")
        assert theirs.recv(10) == b"" and not channel.ended(theirs)
        ours.close()
        assert theirs.recv(10) == b"" and channel.ended(theirs)


def test_a_child_inherits_neither_end_unasked() -> None:
    ours, theirs = channel.pair()
    with ours, theirs:
        assert not ours.get_inheritable() and not theirs.get_inheritable() and ours.gettimeout() == 0


def test_messages_are_bounded_and_a_full_channel_refuses(store: HostStore, connect: Connect) -> None:
    client = connect(store)
    worker = client._supervisor.worker
    assert worker is not None and not worker.send(b"\x00" * (channel.MOST_BYTES + 1))
    nothing = torch.arange(0)
    assert ask(client, nothing, [plain_item(store)] * (channel.MOST_BYTES // 4)) is None  # 4 bytes each and more
    assert all_free(client)
    os.kill(worker.pid, signal.SIGSTOP)  # nobody reads
    tickets = []
    while (ticket := ask(client, nothing, [plain_item(store)])) is not None:
        tickets.append(ticket)
    assert 100 < len(tickets) <= protocol.MOST_PENDING
    os.kill(worker.pid, signal.SIGCONT)
    assert all(isinstance(done, Scored) for done in wait_all(client, tickets).values())
    assert all_free(client)
    os.kill(worker.pid, signal.SIGSTOP)
    taken = 0
    while worker.send(b"\x00" * channel.MOST_BYTES):
        taken += channel.MOST_BYTES
    assert channel.MOST_BYTES <= taken < 16 << 20, "what the kernel keeps"
