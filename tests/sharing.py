"""How tests come by the real servers of `servers.TABLE`: `pytestmark = pytest.mark.server("usual")` in a file, or the
mark on one test, says which it wants, and the fixture `server` is that one.

A second name is of one that is wanted beside it, to be had from the fixture `servers`. `ends=True` marks the test that
ends its server, which is the last to have it. The mark without a name is for a test that starts a server of its own.
Tests are put in the order of the table, and those that want none between them: they run while the next one starts.
Those that want one of `servers.REFUSED` are skipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from servers import REFUSED, TABLE, Servers

from benchmarks.launch import Server

ORDER = pytest.StashKey["Order"]()
SERVERS = pytest.StashKey[Servers]()


class Order:
    """Tests in the order they run, and the servers to be launched before some of them."""

    def __init__(self, items: list[pytest.Item]) -> None:
        groups: dict[str, list[pytest.Item]] = {name: [] for name in TABLE}
        files: dict[Path, list[pytest.Item]] = {}
        for item in items:
            if names := wanted(item):
                groups[names[0]].append(item)
            else:
                files.setdefault(item.path, []).append(item)
        self.items: list[pytest.Item] = []
        self.launches: dict[pytest.Item, tuple[str, ...]] = {}
        taken = [sorted(group, key=ends) for group in groups.values() if group]
        rest = list(files.values())
        for index, group in enumerate(taken):
            start = len(self.items)
            for file in rest[index :: len(taken)]:
                self.items += file
            self.items += group
            self.launches[self.items[start]] = wanted(group[0])
        if not taken:
            self.items = items


def named(item: pytest.Item) -> tuple[str, ...]:
    """The servers that a test's mark names, first that of its fixture `server`."""
    mark = item.get_closest_marker("server")
    names = mark.args if mark else ()
    if unknown := [name for name in names if name not in TABLE]:
        raise pytest.UsageError(f"{item.nodeid} wants a server {unknown[0]!r}; tests/servers.py has {', '.join(TABLE)}")
    return names


def wanted(item: pytest.Item) -> tuple[str, ...]:
    """Those that it is to have: none where one of them is refused, and it is skipped."""
    names = named(item)
    return () if any(name in REFUSED for name in names) else names


def ends(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("server")
    return bool(mark and mark.kwargs.get("ends"))


@pytest.hookimpl(trylast=True)  # after those that are not to run were taken out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for name in named(item):
            if name in REFUSED:
                item.add_marker(pytest.mark.skip(reason=REFUSED[name]))
    order = config.stash[ORDER] = Order(items)
    config.stash[SERVERS] = Servers(Counter(name for item in items for name in wanted(item)))
    items[:] = order.items


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    servers = item.config.stash[SERVERS]
    for name in item.config.stash[ORDER].launches.get(item, ()):
        servers.launch(name)
    result = yield
    for name in wanted(item):
        servers.used(name)
    return result


def pytest_unconfigure(config: pytest.Config) -> None:
    if SERVERS in config.stash:
        config.stash[SERVERS].close()


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> Servers:
    return request.config.stash[SERVERS]


@pytest.fixture
def server(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    """The first that the test's mark names, checked afterwards."""
    names = wanted(request.node)
    assert names, 'name the wanted server in the mark: pytest.mark.server("usual")'
    yield servers.get(names[0])
    if not ends(request.node):
        servers.check(names[0])
