"""Finished samples on disk: one JSON line each, written whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from hetero_sglang.errors import HeteroError

Record = dict[str, Any]


class Store:
    """`DIR/samples.jsonl` and the files beside it; one benchmark at a time may hold a folder."""

    def __init__(self, folder: str | Path) -> None:
        """Open or make the folder. Raises HeteroError if another run holds it, or a line is no record."""
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.folder / "samples.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise HeteroError(f"Cannot write into {self.folder} ({error.strerror}): pass another --out.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise HeteroError(f"Another run writes into {self.folder}: wait for it or pass another --out.") from error
        self.records = self._load()

    def add(self, key: str, record: Record) -> None:
        """Keep a finished sample, on disk before this returns."""
        self.records[key] = {"key": key, **record}
        os.write(self._file, (json.dumps(self.records[key]) + "\n").encode())
        os.fsync(self._file)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the folder, whole or not at all."""
        path = self.folder / name
        scratch = path.with_name(f".{name}.tmp")
        scratch.write_text(text)
        scratch.replace(path)
        return path

    def close(self) -> None:
        """Let another run have the folder."""
        os.close(self._file)

    def _load(self) -> dict[str, Record]:
        data = (self.folder / "samples.jsonl").read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # a run was killed while it wrote its last line
            os.ftruncate(self._file, whole)
        records: dict[str, Record] = {}
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                record = json.loads(line)
                records[record["key"]] = record
            except (ValueError, KeyError, TypeError) as error:
                path = self.folder / "samples.jsonl"
                raise HeteroError(f"Line {number} of {path} is no sample: delete it or pass another --out.") from error
        return records


def key_of(definition: dict[str, Any]) -> str:
    """Key of a sample in a cell: a hash of everything that its result may depend on."""
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:20]
