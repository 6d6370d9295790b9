"""Where a cell's server comes from: it runs already, or it is started for the cell."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from hetero_sglang.errors import HeteroError

from .cell import Cell
from .client import Client


class Host:
    """Gives cells their servers; several threads may ask at once."""

    def serve(self, cell: Cell) -> AbstractContextManager[Client]:
        """A client of the cell's server. Raises HeteroError if there is none."""
        raise NotImplementedError

    def halt(self) -> None:
        """End what `serve` has started, from another thread; who waits for an answer there gets HeteroError."""


class Running(Host):
    """The server at `url`, whatever the cell; raises HeteroError if it says that it serves another."""

    def __init__(self, url: str) -> None:
        self.url = url

    @contextmanager
    def serve(self, cell: Cell) -> Iterator[Client]:
        client = Client(self.url)
        cell.check(client.info())
        yield client


def parse_flags(text: str) -> dict[str, Any]:
    """Flags for every server, from one string: "--hetero-window 32 --disable-overlap-schedule"."""
    flags: dict[str, Any] = {}
    name = ""
    for word in shlex.split(text):
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            name = name.replace("-", "_")
            flags[name] = value or True
        elif name and flags[name] is True:
            flags[name] = word
        else:
            raise HeteroError(f"Server flags {text!r}: {word!r} follows no --flag.")
    return flags


def add_server_flags(parser: argparse.ArgumentParser, default: str) -> None:
    """`--url`, `--jobs` and `--server-flags` of a command line."""
    add = parser.add_argument
    add("--url", help="measure the server at this address instead of starting one per cell")
    add("--jobs", type=int, default=1, metavar="N", help="cells measured at once, each on a server of its own (1)")
    add("--server-flags", default=default, metavar="WORDS", help=f"for every server started (default: {default!r})")
