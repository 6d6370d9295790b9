"""Host rows against flipped bits, for debugging: bytes are summed up when they are first seen, and compared before
they are used again."""

import numpy as np
import torch

from hetero_sglang.cache.host_store import HostStore, take_rows


class Scrub:
    """Sums of the host rows of token slots. Every look reads all of a request's."""

    def __init__(self, host: HostStore) -> None:
        self.host = host
        self._sums = np.zeros(host.rows, dtype=np.int64)  # [slots], over all layers and heads
        self._seen = np.full(host.rows, -1, dtype=np.int32)  # [slots], the generation whose rows were summed up

    def damaged(self, slots: torch.Tensor) -> np.ndarray:
        """Which of `slots` [n] int64, on the CPU, whose rows have arrived, have other rows than when they were first
        seen: [m]."""
        index, generation, sums = slots.numpy(), self.host.stamp(slots).numpy(), self._sum(slots)
        known = self._seen[index] == generation
        wrong = known & (self._sums[index] != sums)
        self._sums[index] = np.where(known, self._sums[index], sums)
        self._seen[index] = generation
        return index[wrong]

    def flip(self, slot: int) -> None:
        """Turn a bit of one of the slot's rows over, as failing memory would."""
        for blocks in self.host.blocks:
            if blocks.shape[1]:
                at = blocks.view(torch.uint8)[slot // blocks.shape[2], 0, slot % blocks.shape[2]]
                at[-1] ^= 64
                return

    def _sum(self, slots: torch.Tensor) -> np.ndarray:
        """[n] int64. Odd weights: a bit more or less changes the sum, wherever it is."""
        total = np.zeros(len(slots), dtype=np.int64)
        for layer, blocks in enumerate(self.host.blocks):
            words = take_rows(blocks, slots).view(torch.int16).flatten(1).numpy()
            weights = 2 * np.arange(words.shape[1], dtype=np.int64) + 2 * layer + 1
            total += words.astype(np.int64) @ weights
        return total
