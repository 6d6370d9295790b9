"""Finished samples on disk: one JSON line each, written whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import lzma
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hetero_sglang.errors import HeteroError

Record = dict[str, Any]
NAME = "samples.jsonl"


class Store:
    """`DIR/samples.jsonl` and the files beside it; one benchmark at a time may hold a folder, with several threads."""

    def __init__(self, folder: str | Path, others: Mapping[str, Record] | None = None) -> None:
        """Open or make the folder; `others` are records from elsewhere, as from `read`, that are finished too.

        Raises HeteroError if another run holds it, or a line is no record.
        """
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.folder / NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise HeteroError(f"Cannot write into {self.folder} ({error.strerror}): pass another --out.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise HeteroError(f"Another run writes into {self.folder}: wait for it or pass another --out.") from error
        self._lock = threading.Lock()
        self.records = {**(others or {}), **_packed(self.folder), **self._load()}

    def add(self, key: str, record: Record) -> None:
        """Keep a finished sample, on disk before this returns."""
        kept = {"key": key, **record}
        line = (json.dumps(kept) + "\n").encode()
        with self._lock:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
            self.records[key] = kept

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
        path = self.folder / NAME
        records, whole = _records(path.read_bytes(), path)
        if whole < os.fstat(self._file).st_size:  # a run was killed while it wrote its last line
            os.ftruncate(self._file, whole)
        return records


def read(folder: Path) -> dict[str, Record]:
    """Finished samples of another folder, by key; a run may be writing there. Raises HeteroError if it has none, or
    a line is no record.
    """
    path = folder / NAME
    try:
        packed = _packed(folder)
        if packed and not path.exists():
            return packed
        return packed | _records(path.read_bytes(), path)[0]
    except OSError as error:
        raise HeteroError(f"Cannot read {path} ({error.strerror}): pass folders of other runs.") from error


def _packed(folder: Path) -> dict[str, Record]:
    """What `samples.jsonl.xz` has, as the folders of published results do."""
    path = folder / f"{NAME}.xz"
    try:
        return _records(lzma.decompress(path.read_bytes()), path)[0] if path.exists() else {}
    except lzma.LZMAError as error:
        raise HeteroError(f"{path} is damaged ({error}): delete it or pass another folder.") from error


def _records(data: bytes, path: Path) -> tuple[dict[str, Record], int]:
    """By key, and the bytes of all whole lines; `path`: where the data is from."""
    whole = data.rfind(b"\n") + 1
    records: dict[str, Record] = {}
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            record = json.loads(line)
            records[record["key"]] = record
        except (ValueError, KeyError, TypeError) as error:
            raise HeteroError(f"Line {number} of {path} is no sample: delete it or pass another folder.") from error
    return records, whole


def key_of(definition: dict[str, Any]) -> str:
    """Key of a sample in a cell: a hash of everything that its result may depend on."""
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:20]
