"""A server for tests gets ports that nobody takes while it starts."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

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


def test_a_port_that_somebody_listens_on_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free := free_port()))
        taken.listen()
        draws = iter([taken.getsockname()[1], other := free_port()])
        monkeypatch.setattr(random.SystemRandom, "randrange", lambda *_: next(draws))
        assert free_port() == other != free
        monkeypatch.setattr(random.SystemRandom, "randrange", lambda *_: taken.getsockname()[1])
        with pytest.raises(RuntimeError, match="100 ports"):
            free_port()
