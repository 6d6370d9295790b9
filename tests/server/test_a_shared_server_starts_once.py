"""A shared server is started once, while other tests run, and ends with the last test that wants it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import servers
import sharing
from servers import TABLE, Servers
from sharing import Order

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnknownMarkWarning")  # in the made-up test files
USUAL, SMALL, LAST = next(iter(TABLE)), list(TABLE)[1], list(TABLE)[-1]


class FakeServer:
    """Notes what is done to it; does not start where its port is 0."""

    made: list[FakeServer]

    def __init__(self, port: int = 1, **flags: Any) -> None:
        self.port, self.alive, self.started_in, self.env = port, False, 0.0, {}
        self.flushed = 0
        self.made.append(self)

    def launch(self) -> None:
        self.alive = True

    def wait(self, timeout: float) -> None:
        if not self.port:
            raise RuntimeError("the server ended with 2")
        self.started_in = 1.0

    def flush(self) -> None:
        self.flushed += 1

    def stop(self, at_once: bool = False) -> None:
        assert at_once
        self.alive = False


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeServer]:
    FakeServer.made = []
    monkeypatch.setattr(servers, "Server", FakeServer)
    monkeypatch.setattr(servers, "TABLE", {"a": {}, "b": {}, "c": {}, "d": {}, "broken": {"port": 0}})
    return FakeServer.made


def test_one_start_serves_all_who_want_it_and_the_last_ends_it(made: list[FakeServer]) -> None:
    shared = Servers(Counter({"a": 2}))
    shared.launch("a")
    assert shared.get("a") is shared.get("a") is made[0] and len(made) == 1
    assert made[0].flushed == 2  # once for each who gets it
    shared.used("a")
    assert made[0].alive
    shared.used("a")
    assert not made[0].alive


def test_the_longest_unused_makes_room(made: list[FakeServer]) -> None:
    shared = Servers(Counter("abcd"))
    for name in "abcad":
        shared.get(name)
    assert [server.alive for server in made] == [True, False, True, True]
    shared.close()
    assert not any(server.alive for server in made)


def test_one_that_has_ended_is_started_again_but_not_one_that_cannot_start(made: list[FakeServer]) -> None:
    shared = Servers(Counter({"a": 2, "broken": 2}))
    shared.get("a").alive = False
    assert shared.get("a") is made[1] and made[1].alive
    for _ in range(2):
        with pytest.raises(RuntimeError, match="ended with 2"):
            shared.get("broken")
    assert len(made) == 3 and not made[2].alive


ASKING = """
import pytest

@pytest.mark.server({last!r})
def test_last(): ...

@pytest.mark.server({usual!r}, ends=True)
def test_ends(): ...

@pytest.mark.server({usual!r}, {small!r})
def test_usual(): ...

def test_none(): ...
"""


def items_of(pytester: pytest.Pytester, text: str) -> list[pytest.Item]:
    return pytester.getitems(text.format(usual=USUAL, small=SMALL, last=LAST))


def test_tests_come_by_server_and_a_start_runs_beside_tests_that_want_none(pytester: pytest.Pytester) -> None:
    items = items_of(pytester, ASKING)
    order = Order(items)
    assert [item.name for item in order.items] == ["test_none", "test_usual", "test_ends", "test_last"]
    launches = {item.name: names for item, names in order.launches.items()}
    assert launches == {"test_none": (USUAL, SMALL), "test_last": (LAST,)}


def test_tests_of_a_server_that_is_refused_are_skipped_and_it_is_not_started(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "REFUSED", {SMALL: "no such flag"})
    items = items_of(pytester, ASKING)
    sharing.pytest_collection_modifyitems(items[0].config, items)
    skipped = {item.name: [mark.kwargs["reason"] for mark in item.iter_markers("skip")] for item in items}
    assert skipped == {"test_none": [], "test_usual": ["no such flag"], "test_ends": [], "test_last": []}
    launches = {item.name: names for item, names in items[0].config.stash[sharing.ORDER].launches.items()}
    assert set(launches.values()) == {(USUAL,), (LAST,)}


def test_a_name_that_is_not_in_the_table_is_refused_with_those_that_are(pytester: pytest.Pytester) -> None:
    items = items_of(pytester, "import pytest\n\n@pytest.mark.server('gone')\ndef test_it(): ...")
    with pytest.raises(pytest.UsageError, match=f"test_it wants a server 'gone'.*{USUAL}"):
        Order(items)
