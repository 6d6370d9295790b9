"""Batches of training samples, drawn by worker processes while the device computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.recall.mixed_sampler import MixedSampler

Batch = tuple[torch.Tensor, torch.Tensor]  # ids [B, L] int16 and kinds [B, L] uint8: few bytes to hand over


class Batches(IterableDataset):
    """Endless batches of `size` samples of `length` tokens; each worker draws its own."""

    def __init__(self, sampler: MixedSampler, length: int, size: int, seed: Sequence[int]) -> None:
        super().__init__()
        self.sampler, self.length, self.size, self.seed = sampler, length, size, tuple(seed)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        rng = np.random.default_rng([*self.seed, self.length, worker.id if worker else 0])
        while True:
            samples = [self.sampler.sample(rng, self.length) for _ in range(self.size)]
            ids = np.stack([sample.ids for sample in samples]).astype(np.int16)
            yield torch.from_numpy(ids), torch.from_numpy(np.stack([sample.kinds for sample in samples]))


def load(batches: Batches, workers: int, device: torch.device) -> Iterator[Batch]:
    """The batches on `device`, drawn by `workers` processes (0: by this one)."""
    cuda = device.type == "cuda"
    loader = DataLoader(
        batches, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None, pin_memory=cuda
    )
    for ids, kinds in loader:
        yield ids.to(device, non_blocking=True), kinds.to(device, non_blocking=True)
