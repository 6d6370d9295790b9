"""Running every sample in every cell, each once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hetero_sglang.errors import HeteroError

from .cell import Cell
from .client import Client
from .host import Host
from .jobs import Jobs
from .progress import Progress
from .store import Record, Store, key_of

_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "hetero_profile.json")
_LARGE = 1 << 26  # bytes


class Item(Protocol):
    """What a matrix runs in its cells: a recall sample, or a line of a data file."""

    @property
    def row(self) -> dict[str, Any]: ...

    @property
    def definition(self) -> dict[str, Any]: ...

    @property
    def tokens(self) -> tuple[int, int]: ...

    def run(self, client: Client) -> dict[str, Any]: ...


@dataclass
class Matrix:
    """Cells times items; `flags` are the servers', `model` a folder or a name."""

    cells: Sequence[Cell]
    items: Sequence[Item]
    store: Store
    model: str
    flags: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # why a cell could not be measured, by its label

    def __post_init__(self) -> None:
        self._weights = model_digest(self.model)

    def key(self, cell: Cell, item: Item) -> str:
        """Changes with the cell, its flags, the model's files and the sample."""
        return key_of({"flags": {**self.flags, **cell.flags}, "model": self._weights, "sample": item.definition})

    def pending(self, cell: Cell) -> list[Item]:
        """The items that this cell has not finished."""
        return [item for item in self.items if self.key(cell, item) not in self.store.records]

    def finished(self) -> Iterator[Record]:
        """Records of this matrix alone; the folder may hold others."""
        for cell in self.cells:
            for item in self.items:
                if record := self.store.records.get(self.key(cell, item)):
                    yield record

    def run(self, host: Host, commit: str, jobs: int = 1) -> None:
        """Run what is pending, cell by cell, `jobs` cells at once; a cell whose server fails is noted, and the next
        one's turn comes.
        """
        todo = {cell: self.pending(cell) for cell in self.cells}
        every = len(self.cells) * len(self.items)
        left = sum(map(len, todo.values()))
        running = Jobs(jobs, host.halt)
        with Progress(every, every - left) as progress:

            def measure(cell: Cell) -> None:
                with progress.cell(cell.label):
                    try:
                        self._run_cell(cell, todo[cell], host, commit, progress, running)
                    except HeteroError as error:
                        if running.over.is_set():  # its server was ended
                            return
                        self.failures[cell.label] = str(error)
                        progress.say(f"{cell.label}: {error}")
                        progress.step(len(self.pending(cell)))

            running.run(measure, [cell for cell, items in todo.items() if items])
        labels = [cell.label for cell in self.cells]
        self.failures = dict(sorted(self.failures.items(), key=lambda failure: labels.index(failure[0])))

    def _run_cell(
        self, cell: Cell, items: list[Item], host: Host, commit: str, progress: Progress, running: Jobs
    ) -> None:
        with host.serve(cell) as client:
            for item in items:
                begun = time.strftime("%Y-%m-%dT%H:%M:%S")
                result = item.run(client)
                if running.over.is_set():  # a server that is being ended may answer half
                    return
                named = {"policy": cell.variant, "ratio": cell.ratio, **item.row, "commit": commit, "begun": begun}
                self.store.add(self.key(cell, item), {**named, **result})
                progress.step()


def model_digest(model: str) -> str:
    """Hash of a checkpoint's files, of large ones size and date alone; of its name where it is no local folder."""
    found = [path for name in _FILES if (path := Path(model) / name).is_file()]
    digest = hashlib.sha256(b"" if found else model.encode())
    for path in found:
        stat = path.stat()
        large = stat.st_size > _LARGE
        digest.update(path.name.encode())
        digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode() if large else path.read_bytes())
    return digest.hexdigest()[:16]
