"""Keys and values of every compressed head for every slot, in host memory the retrieval worker can read."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch

from hetero_sglang.errors import HeteroError
from hetero_sglang.memory.lanes import Mark, download, mark
from hetero_sglang.memory.limits import free_host_bytes
from hetero_sglang.memory.shared_memory import SharedMemory

BLOCK = 16  # slots whose rows of a head lie together
_ALIGNMENT = 4096  # each layer's block starts on a page


class HostStore:
    """Per layer K [rows, C, D] and V [rows, C, Dv], row = SGLang's slot id; C = 0 gives empty views.

    `generation` [rows] int32 counts how often a slot was released: whoever works on a slot across steps takes
    `stamp` first and asks `unchanged` before it uses the result.
    """

    def __init__(
        self,
        rows: int,
        heads: Sequence[int],
        head_dim: int,
        v_head_dim: int,
        dtype: torch.dtype,
        pin: bool = False,
    ) -> None:
        """`heads`: compressed heads per layer. HeteroError when the memory cannot be had or pinned."""
        self.rows, self.heads = rows, list(heads)
        self.head_dim, self.v_head_dim, self.dtype = head_dim, v_head_dim, dtype
        self._k_offsets, self._v_offsets, self.nbytes = self._place()
        free = free_host_bytes()
        if self.nbytes > free:
            raise HeteroError(
                f"the host tier needs {self.nbytes / 1e9:.3g} GB ({rows} slots of {self.bytes_per_row} B) "
                f"but {free / 1e9:.3g} GB of host memory are free: lower --hetero-host-size, or raise the "
                f"container's memory limit."
            )
        self.memory = SharedMemory("hetero-host-store", self.nbytes, pin)
        self.k = [
            self.memory.tensor(dtype, (rows, count, head_dim), at)  # [rows, C, D]
            for count, at in zip(self.heads, self._k_offsets, strict=True)
        ]
        self.v = [
            self.memory.tensor(dtype, (rows, count, v_head_dim), at)  # [rows, C, Dv]
            for count, at in zip(self.heads, self._v_offsets, strict=True)
        ]
        self.generation = torch.zeros(rows, dtype=torch.int32)  # [rows]
        self._released: deque[tuple[torch.Tensor, Mark]] = deque()  # slots on their way from the device

    @property
    def bytes_per_row(self) -> int:
        """Host bytes of one token over all layers."""
        return sum(self.heads) * (self.head_dim + self.v_head_dim) * self.dtype.itemsize

    def write(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put k [n, C, D] and v [n, C, Dv] at `slots` [n]; on the CPU. IndexError for a slot out of range."""
        index = self._index(slots)
        for store, values in ((self.k[layer], k), (self.v[layer], v)):
            shape = (len(index), *store.shape[1:])
            if values.shape != shape or values.dtype != store.dtype:
                raise ValueError(f"expected {shape} {store.dtype}, got {tuple(values.shape)} {values.dtype}")
            if values.numel():
                # One memory copy per row; torch's indexed copies go by element and wake its thread pool.
                _as_rows(store)[index] = _as_rows(values.contiguous())

    def read(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies k [n, C, D], v [n, C, Dv] of `slots` [n], on the CPU. IndexError for a slot out of range."""
        index = self._index(slots)
        k, v = (self._gather(store[layer], index) for store in (self.k, self.v))
        return k, v

    def read_heads(self, layer: int, slots: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies k [n, D], v [n, Dv] of head `heads[i]` of slot `slots[i]`, both [n] on the CPU."""
        return self.k[layer][slots, heads], self.v[layer][slots, heads]

    def release(self, slots: torch.Tensor) -> None:
        """`slots` [n] were freed: what was stamped before is stale from now on. Waits for nothing."""
        self._released.append((download(slots), mark(slots.device)))
        while self._released and self._released[0][1].passed:
            self._age()

    def stamp(self, slots: torch.Tensor) -> torch.Tensor:
        """Generations [n] int32 of `slots` [n] now; waits for slots that are still on their way from the device."""
        while self._released:
            self._age()
        return torch.from_numpy(self.generation.numpy()[self._index(slots)])

    def _age(self) -> None:
        slots, arrived = self._released.popleft()
        arrived.wait()
        self.generation.numpy()[self._index(slots)] += 1

    def unchanged(self, slots: torch.Tensor, generations: torch.Tensor) -> torch.Tensor:
        """Bool [n]: which `slots` were not released since `generations` was stamped."""
        return self.stamp(slots) == generations

    def layout(self) -> dict[str, object]:
        """Where everything lies in the mapping, in bytes; plain JSON types."""
        return {
            "rows": self.rows,
            "heads": self.heads,
            "head_dim": self.head_dim,
            "v_head_dim": self.v_head_dim,
            "dtype": str(self.dtype).removeprefix("torch."),
            "itemsize": self.dtype.itemsize,
            "k_offsets": self._k_offsets,
            "v_offsets": self._v_offsets,
            "nbytes": self.nbytes,
        }

    def close(self) -> None:
        """Unpin and give the memory back; the store is unusable afterwards."""
        self.k, self.v = [], []
        self.memory.close()

    def _place(self) -> tuple[list[int], list[int], int]:
        k_offsets: list[int] = []
        v_offsets: list[int] = []
        end = 0
        for count in self.heads:
            for offsets, dim in ((k_offsets, self.head_dim), (v_offsets, self.v_head_dim)):
                offsets.append(end)
                size = self.rows * count * dim * self.dtype.itemsize
                end += -(-size // _ALIGNMENT) * _ALIGNMENT
        return k_offsets, v_offsets, end

    def _index(self, slots: torch.Tensor) -> np.ndarray:
        index = slots.numpy()
        if index.size and (index.min() < 0 or index.max() >= self.rows):
            raise IndexError(f"slot ids must lie in [0, {self.rows})")
        return index

    def _gather(self, store: torch.Tensor, index: np.ndarray) -> torch.Tensor:
        out = torch.empty((len(index), *store.shape[1:]), dtype=store.dtype)
        if out.numel():
            _as_rows(out)[:] = _as_rows(store)[index]
        return out


def _as_rows(values: torch.Tensor) -> np.ndarray:
    """[n] opaque items, one per row of a contiguous [n, ...] tensor of any dtype."""
    flat = values.view(torch.uint8).view(len(values), -1).numpy()
    return flat.view(f"V{flat.shape[1]}")[:, 0]
