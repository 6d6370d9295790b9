"""The KV cache of one calibration document, kept in host memory."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class HostLayer(CacheLayerMixin):
    """K and V of one layer in buffers made once, so that memory neither grows by copies nor fragments.

    With the model on a GPU the buffers are pinned and a layer is copied to the device when it attends."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Makes the buffers [1, H, capacity, D]."""
        batch, heads, _, dim = key_states.shape
        pinned = key_states.device.type == "cuda"
        shape = (batch, heads, self.capacity, dim)
        self.keys, self.values = (
            torch.empty(shape, dtype=states.dtype, pin_memory=pinned) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends [1, H, n, D] and returns all rows so far on the model's device."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        found = []
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer[:, :, start : self.length].copy_(states)
            found.append(buffer[:, :, : self.length].to(states.device, non_blocking=True))
        return found[0], found[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys seen by the next `query_length` queries, and the first key's position."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length

    def get_max_cache_shape(self) -> int:
        """Tokens that can be held."""
        return self.capacity


def host_cache(num_layers: int, capacity: int) -> Cache:
    """A cache of `capacity` tokens."""
    return Cache(layers=[HostLayer(capacity) for _ in range(num_layers)])
