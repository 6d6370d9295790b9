"""Where a cell's server comes from: it runs already, or it is started for the cell."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.launch import Server
from hetero_sglang.errors import HeteroError

from .cell import Cell
from .client import Client

Host = Callable[[Cell], AbstractContextManager[Client]]


def choose(url: str | None, model: str, flags: dict[str, Any], logs: Path, cells: Sequence[Cell]) -> Host:
    """The server at `url`, or one per cell. Raises HeteroError for more than one cell at one address."""
    if url is None:
        return started(model, flags, logs)
    if len(cells) > 1:
        raise HeteroError(f"{len(cells)} cells for one server: with --url name one policy and one ratio.")
    return running(url)


def running(url: str) -> Host:
    """The server at `url`, whatever the cell; raises HeteroError if it says that it serves another."""

    @contextmanager
    def host(cell: Cell) -> Iterator[Client]:
        client = Client(url)
        cell.check(client.info())
        yield client

    return host


def started(model: str, flags: dict[str, Any], logs: Path) -> Host:
    """A server of its own for each cell; raises HeteroError with its last word if it does not start."""

    @contextmanager
    def host(cell: Cell) -> Iterator[Client]:
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / (re.sub(r"[^\w.]+", "-", cell.label) + ".log")
        server = Server(model=model, log=log, **{**flags, **cell.flags})
        try:
            try:
                server.start()
            except RuntimeError as error:
                raise HeteroError(f"No server for {cell.label}: {last_word(server.tail())} ({log})") from error
            yield Client(server.url)
        finally:
            server.stop()

    return host


def last_word(log: str) -> str:
    """The line of a server's log that says why it ended."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in reversed(lines):
        if match := re.search(r"\berror: (.*)|^[\w.]+(?:Error|Exception)\b.*", line):
            return match[1] or match[0]
    return lines[-1] if lines else "it said nothing"


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
    """`--url`, `--model` and `--server-flags` of a command line."""
    add = parser.add_argument
    add("--url", help="measure the server at this address instead of starting one per cell")
    add("--server-flags", default=default, metavar="WORDS", help=f"for every server started (default: {default!r})")
