"""A server for tests gets ports that nobody takes while it starts."""

from __future__ import annotations

import random
import socket
from itertools import chain, repeat
from pathlib import Path

import pytest

from benchmarks import launch
from benchmarks.launch import Server, free_port


def test_ports_lie_where_no_connection_gets_one() -> None:
    lowest_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    server = Server()
    ranks = int(server.command[server.command.index("--nccl-port") + 1])
    assert all(10_000 <= port < max(lowest_given, 11_000) for port in (server.port, ranks, free_port()))


def test_equal_seeds_draw_different_ports() -> None:
    drawn = set()
    for _ in range(4):
        random.seed(0)
        drawn.add(free_port())
    assert len(drawn) > 1


def draws(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    """These come next, the last of them ever after; this process was given none of them."""
    coming = chain(ports, repeat(ports[-1]))
    monkeypatch.setattr(launch, "_drawn", set())
    monkeypatch.setattr(random.SystemRandom, "randrange", lambda *_: next(coming))


def test_a_port_that_somebody_listens_on_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    port, other = free_port(), free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        draws(monkeypatch, port, other)
        assert free_port() == other
        draws(monkeypatch, port)
        with pytest.raises(RuntimeError, match="100 ports"):
            free_port()


def test_a_port_is_given_once_although_nobody_listens_on_it_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    port, other = free_port(), free_port()
    draws(monkeypatch, port, port, other)
    assert [free_port(), free_port()] == [port, other]
