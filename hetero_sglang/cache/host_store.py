"""Keys and values of every compressed head for every slot, in host memory the retrieval worker can read."""

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch

from hetero_sglang.cache.host_layout import BLOCK, HostLayout
from hetero_sglang.cache.lanes import Mark, download, mark
from hetero_sglang.cache.limits import free_host_bytes
from hetero_sglang.cache.shared_memory import SharedMemory
from hetero_sglang.errors import HeteroError

_ALIGNMENT = 4096  # each layer's block starts on a page


class HostStore:
    """Per layer `blocks` [blocks, C, BLOCK, D + Dv]: K and V of SGLang's slot s and compressed head c side by side at
    [s // BLOCK, c, s % BLOCK]; C = 0 gives empty views.

    A kernel reads host memory at the speed of places visited: a row is one, and so are a head's neighbouring rows.
    `generation` [rows] int32 counts how often a slot was released: whoever works on a slot across steps takes
    `stamp` first and asks `unchanged` before it uses the result."""

    def __init__(
        self, rows: int, heads: Sequence[int], head_dim: int, v_head_dim: int, dtype: torch.dtype, pin: bool = False
    ) -> None:
        """`heads`: compressed heads per layer. HeteroError when the memory cannot be had or pinned."""
        self.rows, self.heads = rows, list(heads)
        self.head_dim, self.v_head_dim, self.dtype = head_dim, v_head_dim, dtype
        slots, width = -(-rows // BLOCK) * BLOCK, (head_dim + v_head_dim) * dtype.itemsize
        sizes = [-(-slots * count * width // _ALIGNMENT) * _ALIGNMENT for count in self.heads]
        self._offsets, self.nbytes = [sum(sizes[:layer]) for layer in range(len(sizes))], sum(sizes)
        free = free_host_bytes()
        if self.nbytes > free:
            raise HeteroError(
                f"the host tier needs {self.nbytes / 1e9:.3g} GB ({rows} slots of {self.bytes_per_row} B) "
                f"but {free / 1e9:.3g} GB of host memory are free: lower --hetero-host-size, or raise the "
                f"container's memory limit."
            )
        self.memory = SharedMemory("hetero-host-store", self.nbytes, pin)
        self.blocks = [
            self.memory.tensor(dtype, (-(-rows // BLOCK), count, BLOCK, head_dim + v_head_dim), at)
            for count, at in zip(self.heads, self._offsets, strict=True)
        ]
        self.generation = torch.zeros(rows, dtype=torch.int32)  # [rows]
        self._released: deque[tuple[torch.Tensor, Mark]] = deque()  # slots on their way from the device

    @property
    def bytes_per_row(self) -> int:
        """Host bytes of one token over all layers."""
        return sum(self.heads) * (self.head_dim + self.v_head_dim) * self.dtype.itemsize

    def release(self, slots: torch.Tensor) -> tuple[torch.Tensor, Mark]:
        """`slots` [n] were freed: what was stamped before is stale from now on. Waits for nothing; returns the slots on
        their way to the host, and when they are there."""
        freed = download(slots), mark(slots.device)
        self._released.append(freed)
        while self._released and self._released[0][1].passed:
            self._age()
        return freed

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

    def layout(self) -> HostLayout:
        """Where everything lies in the mapping, in bytes."""
        dims, dtype = (self.head_dim, self.v_head_dim), str(self.dtype).removeprefix("torch.")
        return HostLayout(self.rows, self.heads, *dims, dtype, self.dtype.itemsize, self._offsets, self.nbytes)

    def close(self) -> None:
        """Unpin and give the memory back; the store is unusable afterwards."""
        self.blocks = []
        self.memory.close()

    def _index(self, slots: torch.Tensor) -> np.ndarray:
        index = slots.numpy()
        if index.size and (index.min() < 0 or index.max() >= self.rows):
            raise IndexError(f"slot ids must lie in [0, {self.rows})")
        return index


# One memory copy per row: torch's indexed copies go by element and wake its thread pool.


def put_rows(blocks: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
    """rows [n, C, S] to `slots` [n] of a layer's blocks [blocks, C, BLOCK, S]; all on the CPU."""
    if rows.numel():
        _items(blocks)[_places(blocks, slots)] = _items(rows.contiguous()).reshape(rows.shape[:2])


def take_rows(blocks: torch.Tensor, slots: torch.Tensor, heads: torch.Tensor | None = None) -> torch.Tensor:
    """A copy [n, C, S] of `slots` [n] of a layer's blocks; or [n, S], of head `heads[i]` alone."""
    places = _places(blocks, slots) if heads is None else _places(blocks, slots, heads[:, None].numpy())[:, 0]
    out = torch.empty(*places.shape, blocks.shape[-1], dtype=blocks.dtype)
    if out.numel():
        _items(out)[:] = _items(blocks)[places.reshape(-1)]
    return out


def _places(blocks: torch.Tensor, slots: torch.Tensor, heads: np.ndarray | None = None) -> np.ndarray:
    """Items [n, C] of `slots` [n]: of all heads, or of these [n, C]."""
    slot = slots.numpy()[:, None]
    heads = np.arange(blocks.shape[1]) if heads is None else heads
    return (slot // BLOCK * blocks.shape[1] + heads) * BLOCK + slot % BLOCK


def _items(values: torch.Tensor) -> np.ndarray:
    """A contiguous tensor's rows [..., S] as opaque items, all in one line."""
    flat = values.view(torch.uint8).numpy()
    return flat.view(f"V{flat.shape[-1]}").reshape(-1)
