"""Servers that are up together and take turns, so that the card's clocks and heat touch all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from benchmarks.launch import Server

T = TypeVar("T")


def groups(servers: dict[str, Server], alone: bool) -> list[dict[str, Server]]:
    """Who is up at the same time: all, or one after the other where one fills the card."""
    return [{name: server} for name, server in servers.items()] if alone else [servers]


@contextmanager
def up(servers: dict[str, Server]) -> Iterator[None]:
    """Start one after the other: a server sizes its pools by the memory that the card has left."""
    with ExitStack() as stack:
        for server in servers.values():
            stack.enter_context(server)
        yield


def turns(servers: dict[str, Server], rounds: int, measure: Callable[[Server], T]) -> dict[str, list[T]]:
    """What `rounds` measurements of every server gave, each round one of each."""
    found: dict[str, list[T]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, server in servers.items():
            found[name].append(measure(server))
    return found
