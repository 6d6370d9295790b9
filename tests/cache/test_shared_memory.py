"""Shared memory is shared, nameless, and pinned only when that really worked."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hetero_sglang.cache.shared_memory import SharedMemory
from hetero_sglang.errors import HeteroError


class Cudart:
    """Stands in for torch.cuda.cudart()."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.registered: dict[int, int] = {}

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802
        if self.code == 0:
            self.registered[address] = nbytes
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.registered[address]
        return 0


def test_what_one_mapping_writes_the_other_reads() -> None:
    first = SharedMemory("test", 100)
    second = mmap.mmap(first.fd, 100)
    wrote = torch.randn(3, 4)
    first.tensor(torch.float32, (3, 4), 8).copy_(wrote)
    assert first.tensor(torch.float32, (2, 0, 4)).shape == (2, 0, 4)
    assert torch.equal(torch.frombuffer(second, dtype=torch.float32, count=12, offset=8).view(3, 4), wrote)
    first.close()
    assert torch.equal(torch.frombuffer(second, dtype=torch.float32, count=12, offset=8).view(3, 4), wrote)


def test_a_view_may_outlive_its_memory() -> None:
    memory = SharedMemory("test", 64)
    view = memory.tensor(torch.int64, (8,))
    memory.close()
    memory.close()
    view.fill_(7)
    assert view.tolist() == [7] * 8


def test_it_has_no_file_and_no_descriptor_after_close() -> None:
    memory = SharedMemory("hetero-test-name", 4096)
    target = os.readlink(f"/proc/self/fd/{memory.fd}")
    assert target.startswith("/memfd:hetero-test-name") and target.endswith("(deleted)")
    assert "hetero-test-name" in Path("/proc/self/maps").read_text()
    memory.close()
    links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not any("hetero-test-name" in link for link in links)
    assert "hetero-test-name" not in Path("/proc/self/maps").read_text()


def test_more_than_can_be_mapped_is_refused_in_words() -> None:
    with pytest.raises(HeteroError, match=r"limit of a process's addresses .*\(ulimit -v\).*--hetero-host-size"):
        SharedMemory("test", 2**62)


def test_a_pin_is_undone_once_by_close(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = Cudart(0)
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(cudart=lambda: cudart))
    memory = SharedMemory("test", 10_000, pin=True)
    address = memory.tensor(torch.uint8, (1,)).data_ptr()
    assert cudart.registered == {address: len(memory.buffer)}
    memory.close()
    memory.close()
    assert not cudart.registered


def test_a_failed_pin_names_the_limit_and_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(cudart=lambda: Cudart(2)))
    with pytest.raises(HeteroError, match="(?s)error 2.*memlock.*--hetero-host-size"):
        SharedMemory("hetero-unpinned", 10_000, pin=True)
    assert "hetero-unpinned" not in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA starts here")
def test_pinning_without_a_driver_is_refused_in_words() -> None:
    with pytest.raises(HeteroError, match="CUDA does not start"):
        SharedMemory("test", 10_000, pin=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_pinned_views_are_pinned_for_torch() -> None:
    memory = SharedMemory("test", 1 << 20, pin=True)
    view = memory.tensor(torch.bfloat16, (100, 128), 4096)
    view.copy_(torch.randn(100, 128))
    assert view.is_pinned() and view[3:7].is_pinned()
    assert torch.equal(view.to("cuda", non_blocking=True).cpu(), view)
    memory.close()
    assert not view.is_pinned()
