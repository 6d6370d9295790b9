"""The KV cache of one calibration document, kept in host memory."""

import torch
from transformers.cache_utils import DynamicLayer


class HostLayer(DynamicLayer):
    """K and V of one layer in buffers made once, so that memory neither grows by copies nor fragments.

    With the model on a GPU the buffers are pinned and a layer is copied to the device when it attends."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Makes the buffers [1, H, capacity, D]; `keys` and `values` are what of them is in use."""
        pinned = key_states.device.type == "cuda"
        self.buffers = [
            torch.empty((*states.shape[:2], self.capacity, states.shape[3]), dtype=states.dtype, pin_memory=pinned)
            for states in (key_states, value_states)
        ]
        self.keys, self.values = (buffer[:, :, :0] for buffer in self.buffers)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends [1, H, n, D] and returns all rows so far on the model's device."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop].copy_(states)
        self.keys, self.values = (buffer[:, :, :stop] for buffer in self.buffers)
        device = key_states.device
        return self.keys.to(device, non_blocking=True), self.values.to(device, non_blocking=True)
