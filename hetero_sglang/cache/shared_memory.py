"""Anonymous memory that other processes can map, optionally pinned for the GPU."""

import math
import mmap
import os
import resource
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from hetero_sglang.errors import HeteroError

_SHARE = 1 << 28  # bytes that a thread faults in at a time


class SharedMemory:
    """One mapping of a memfd: without a file name, so it ends with the last process that holds it.

    `fd` is handed to other processes (`subprocess.Popen(pass_fds=...)`), `buffer` is the mapping."""

    def __init__(self, name: str, nbytes: int, pin: bool = False) -> None:
        """Zeroed memory; `name` shows in /proc/*/maps. HeteroError when it cannot be had or pinned."""
        size = max(1, math.ceil(nbytes / mmap.PAGESIZE)) * mmap.PAGESIZE
        self.fd, self.nbytes = os.memfd_create(name, os.MFD_CLOEXEC), nbytes
        self._unpin: weakref.finalize[..., SharedMemory] | None = None
        try:
            os.ftruncate(self.fd, size)
            self.buffer = mmap.mmap(self.fd, size, mmap.MAP_SHARED)
        except OSError as error:
            os.close(self.fd)
            raise HeteroError(
                f"{_gb(nbytes)} of host memory cannot be mapped ({error.strerror}; limit of a process's addresses "
                f"{_limit(resource.RLIMIT_AS)}): raise that limit (ulimit -v), or lower --hetero-host-size."
            ) from error
        if pin:
            try:
                self._pin()
            except HeteroError:
                self.close()
                raise

    def tensor(self, dtype: torch.dtype, shape: Sequence[int], offset: int = 0) -> torch.Tensor:
        """CPU view of `shape` at byte `offset`; it shares memory with every process that maps this."""
        count = math.prod(shape)
        if count == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        return torch.frombuffer(self.buffer, dtype=dtype, count=count, offset=offset).view(tuple(shape))

    def close(self) -> None:
        """Unpin and unmap; views still alive keep the pages until they go. Safe to call twice."""
        if self.fd < 0:
            return
        if self._unpin is not None:
            self._unpin()
        os.close(self.fd)
        self.fd = -1
        # Not buffer.close(): torch.frombuffer holds the mapping but does not lock it, so a view left over
        # would read unmapped memory. Dropped like this, the mapping ends with its last view.
        del self.buffer

    def _pin(self) -> None:
        memory = torch.frombuffer(self.buffer, dtype=torch.uint8)
        _fault_in(memory)
        address = memory.data_ptr()
        try:
            code = int(torch.cuda.cudart().cudaHostRegister(address, len(self.buffer), 0))
        except (RuntimeError, AssertionError) as error:  # no driver, or a torch built without CUDA
            raise HeteroError(
                f"{_gb(self.nbytes)} of host memory cannot be pinned because CUDA does not start "
                f"({str(error).splitlines()[0]}): run on a machine with a working NVIDIA driver."
            ) from error
        if code != 0:
            raise HeteroError(
                f"{_gb(self.nbytes)} of host memory cannot be pinned (cudaHostRegister error {code}; memlock limit "
                f"{_limit(resource.RLIMIT_MEMLOCK)}): raise that limit (ulimit -l, docker run --ulimit memlock=-1) or "
                f"the container's memory, or lower --hetero-host-size."
            )
        self._unpin = weakref.finalize(self, _unregister, address)
        self._unpin.atexit = False  # the driver may be gone by then, and exit unpins anyway


def _fault_in(memory: torch.Tensor) -> None:
    """Give fresh memory its pages, by many threads: the driver, which would do it, has one."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        list(threads.map(lambda share: share[:: mmap.PAGESIZE].zero_(), memory.split(_SHARE)))


def _unregister(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)


def _limit(which: int) -> str:
    soft, _ = resource.getrlimit(which)
    return "unlimited" if soft == resource.RLIM_INFINITY else _gb(soft)


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.3g} GB"
