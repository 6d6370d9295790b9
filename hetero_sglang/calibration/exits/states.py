"""The states that a model reads a text with, kept on disk: a record for each token."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from hetero_sglang.errors import HeteroError

_AS_NUMPY = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "<i2"}  # NumPy has no bfloat16


@dataclass(frozen=True, eq=False)
class Batch:
    """Some tokens: states behind the branches' layers and, normed, behind the last [n, B + 1, H]; the model's first
    choices [n] int64 and the logarithm of what its softmax divides by [n] float32; which word the text goes on with [n]
    int64, -1 where it ends."""

    states: torch.Tensor
    first: torch.Tensor
    divisor: torch.Tensor
    next: torch.Tensor


class States:
    """A file of records in reading order; more than memory holds, so that rows are read as they are asked for."""

    def __init__(self, path: Path, layers: int, hidden: int, dtype: torch.dtype) -> None:
        """`layers`: states in a record. Opens what is there, or nothing."""
        self._dtype = dtype
        self._record = np.dtype(
            [("states", _AS_NUMPY[dtype], (layers, hidden)), ("first", "<i4"), ("divisor", "<f4"), ("next", "<i4")]
        )
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._path = path

    def __enter__(self) -> States:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)

    def __len__(self) -> int:
        return os.fstat(self._file).st_size // self._record.itemsize

    def check_room(self, tokens: int) -> None:
        """Raises HeteroError where the disk cannot take records of so many tokens in all."""
        needed = (tokens - len(self)) * self._record.itemsize
        if needed > (free := shutil.disk_usage(self._path.parent).free):
            raise HeteroError(
                f"the states of {tokens} tokens take {needed / 1e9:.1f} GB and {self._path.parent} has "
                f"{free / 1e9:.1f} GB; choose a smaller `--tokens`."
            )

    def cut(self, tokens: int) -> None:
        """Keeps the first records alone."""
        if os.fstat(self._file).st_size != (size := tokens * self._record.itemsize):
            os.ftruncate(self._file, size)

    def append(self, batch: Batch) -> None:
        """Writes records at the end. Raises HeteroError where the disk takes no more."""
        records = np.empty(len(batch.first), self._record)
        kept = batch.states.detach().to("cpu", self._dtype).contiguous()
        records["states"] = (kept.view(torch.int16) if self._dtype == torch.bfloat16 else kept).numpy()
        for name in ("first", "divisor", "next"):
            records[name] = getattr(batch, name).cpu().numpy()
        content, at = memoryview(records.tobytes()), len(self) * self._record.itemsize
        try:
            while content:
                written = os.pwrite(self._file, content, at)
                content, at = content[written:], at + written
        except OSError as error:
            raise HeteroError(f"{self._path} cannot be written: {error.strerror}; free some space.") from None

    def rows(self, numbers: list[int], device: torch.device) -> Batch:
        """Records by their numbers."""
        size = self._record.itemsize
        content = b"".join(os.pread(self._file, size, number * size) for number in numbers)
        return self._batch(np.frombuffer(content, self._record), device)

    def chunks(self, begin: int, end: int, size: int, device: torch.device) -> Iterator[Batch]:
        """Records from `begin` to `end`, `size` at a time."""
        for at in range(begin, end, size):
            yield self._batch(self._read(at, min(at + size, end)), device)

    def first_choices(self, count: int) -> torch.Tensor:
        """The model's, of the first `count` records: [count] int64."""
        step = 4096
        parts = [self._read(at, min(at + step, count))["first"].astype(np.int64) for at in range(0, count, step)]
        return torch.from_numpy(np.concatenate(parts))

    def _read(self, begin: int, end: int) -> np.ndarray:
        size = self._record.itemsize
        return np.frombuffer(os.pread(self._file, (end - begin) * size, begin * size), self._record)

    def _batch(self, records: np.ndarray, device: torch.device) -> Batch:
        states = torch.from_numpy(records["states"].copy())
        states = states.view(torch.bfloat16) if self._dtype == torch.bfloat16 else states
        first, divisor, after = (torch.from_numpy(records[name].copy()) for name in ("first", "divisor", "next"))
        return Batch(states.to(device), first.to(device).long(), divisor.to(device), after.to(device).long())
