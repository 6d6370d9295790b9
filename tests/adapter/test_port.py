"""The HTTP port is tried before the model is loaded, as the server will bind it later."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from hetero_sglang.errors import HeteroError
from hetero_sglang.sglang.port import check_port, launching

HOST = "127.0.0.1"


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server((HOST, 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use_is_refused_and_a_freed_one_is_not(taken: int) -> None:
    with pytest.raises(HeteroError, match=f"--port {taken} .Address already in use"):
        check_port(HOST, taken)
    with socket.create_server((HOST, 0)) as other:
        free = other.getsockname()[1]
    check_port(HOST, free)
    with socket.create_server((HOST, free)):  # and the trial holds nothing
        pass


@pytest.mark.parametrize("host", ["0.0.0.0", "", None, "localhost"])
def test_every_address_of_the_host_counts(taken: int, host: str | None) -> None:
    with pytest.raises(HeteroError, match="already in use"):
        check_port(host, taken)


def test_a_port_of_another_address_is_free(taken: int) -> None:
    check_port("127.0.0.2", taken)


def test_connections_of_a_server_that_has_ended_do_not_hold_the_port() -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection((HOST, port))
        accepted, _ = server.accept()
        accepted.close()  # the server's side closes first and waits
        client.close()
    with socket.socket() as plain, pytest.raises(OSError, match="in use"):  # without SO_REUSEADDR it is held
        plain.bind((HOST, port))
    check_port(HOST, port)


def test_an_address_that_is_not_there_counts_only_where_no_other_is(monkeypatch: pytest.MonkeyPatch) -> None:
    here, absent = (HOST, 0), ("192.0.2.1", 0)  # the second is for documentation
    answers = {"both": [here, absent], "one": [absent]}

    def resolve(host: str, *_: object, **__: object) -> list:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in answers[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    check_port("both", 0)
    with pytest.raises(HeteroError, match="--host one"):
        check_port("one", 0)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        (HOST, -1, r"--port -1 is not within \[0, 65535\]"),
        (HOST, 70000, "--port 70000 is not within"),
        ("192.0.2.1", 31000, "--host 192.0.2.1 --port 31000"),
        ("no.such.host.invalid", 31000, "--host no.such.host.invalid has no address"),
        ("a" * 70 + ".invalid", 31000, "has no address"),
    ],
)
def test_what_can_never_be_bound_is_refused(host: str, port: int, words: str) -> None:
    with pytest.raises(HeteroError, match=words) as refusal:
        check_port(host, port)
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")


def test_launching_ends_the_process_with_a_sentence_under_a_policy_and_leaves_full_alone(
    taken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        launching(SimpleNamespace(kv_policy="heterocache", host=HOST, port=taken))
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(taken) in line
    assert launching(SimpleNamespace(kv_policy="full", host=HOST, port=taken)) is None
