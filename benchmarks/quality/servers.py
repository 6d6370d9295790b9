"""Servers started for cells, one each."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.launch import Server
from hetero_sglang.errors import HeteroError

from .cell import Cell
from .client import Client
from .cores import core_shares
from .host import Host

START = 300.0  # seconds; servers that start side by side slow each other down
_RANKS = ("tp", "tp_size", "tensor_parallel_size")


class Servers(Host):
    """A server of its own for each cell, `jobs` at once; raises HeteroError with its last word if it does not start.

    A server must be started and used in one thread: it ends with the thread that started it.
    """

    def __init__(self, model: str, flags: dict[str, Any], logs: Path, jobs: int = 1) -> None:
        self.model, self.flags, self.logs, self.jobs = model, flags, logs, jobs
        self._shares: list[dict[str, str]] | None = None  # asked for by the first cell: it may take long to tell
        self._up: list[Server] = []
        self._lock = threading.Lock()

    @contextmanager
    def serve(self, cell: Cell) -> Iterator[Client]:
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / (re.sub(r"[^\w.]+", "-", cell.label) + ".log")
        with self._lock:
            if self._shares is None:
                ranks = [int(self.flags[name]) for name in _RANKS if str(self.flags.get(name)).isdecimal()]
                self._shares = core_shares(self.jobs, max([1, *ranks]))
            share = self._shares.pop(0)
            server = Server(model=self.model, log=log, env=share, **{**self.flags, **cell.flags})
            self._up.append(server)
        try:
            try:
                server.start(timeout=START * self.jobs)
            except RuntimeError as error:
                raise HeteroError(f"No server for {cell.label}: {last_word(server.tail())} ({log})") from error
            yield Client(server.url)
        finally:
            server.stop()
            with self._lock:
                self._up.remove(server)
                self._shares.insert(0, share)

    def halt(self) -> None:
        with self._lock:
            up = list(self._up)
        for server in up:
            process = server.process  # none before its start and after its end
            if process is not None and process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def last_word(log: str) -> str:
    """The line of a server's log that says why it ended."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in reversed(lines):
        if match := re.search(r"\berror: (.*)|^[\w.]+(?:Error|Exception)\b.*", line):
            return match[1] or match[0]
    return lines[-1] if lines else "it said nothing"
