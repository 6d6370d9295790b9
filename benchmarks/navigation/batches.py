"""Batches of demonstrations, drawn by worker processes while the device computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .demonstration import Demonstration, demonstrate
from .layout import Layout

SEEDS = 1 << 40  # worlds of training; those of an evaluation have seeds below
_SMALLER = 0.4  # share of the episodes in worlds with fewer rooms than the stage's


@dataclass(frozen=True)
class Batch:
    """ids, targets and kinds [T] of sequences of these lengths."""

    ids: torch.Tensor
    targets: torch.Tensor
    kinds: torch.Tensor
    lengths: list[int]


class Batches(IterableDataset):
    """Endless batches of exactly `tokens` tokens in worlds of up to `rooms` rooms a side; the last episode is cut.

    With 0 rooms every turn stands alone, from worlds of the layout's size.
    """

    def __init__(self, layout: Layout, rooms: int, tokens: int, seed: int, slips: float) -> None:
        super().__init__()
        self.layout, self.rooms, self.tokens, self.seed, self.slips = layout, rooms, tokens, seed, slips

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        draw = np.random.default_rng([self.seed, self.rooms, worker.id if worker else 0])
        waiting: list[Demonstration] = []
        while True:
            taken, room = [], self.tokens
            while room:
                each = waiting.pop() if waiting else self._draw(draw, waiting)
                taken.append(_cut(each, room))
                room -= len(taken[-1].ids)
            taken.sort(key=lambda each: len(each.ids))  # those of one length are attended to at once
            ids, targets, kinds = (
                torch.from_numpy(np.concatenate([getattr(each, part) for each in taken]))
                for part in ("ids", "targets", "kinds")
            )
            yield Batch(ids, targets, kinds, [len(each.ids) for each in taken])

    def _draw(self, draw: np.random.Generator, waiting: list[Demonstration]) -> Demonstration:
        most = self.rooms or self.layout.rooms
        rooms = most if draw.random() > _SMALLER else int(draw.integers(1, most + 1))
        found = demonstrate(self.layout.of(rooms), SEEDS + int(draw.integers(SEEDS)), self.slips)
        if self.rooms:
            return found
        waiting += [found.turn(n) for n in range(len(found.turns))]
        return waiting.pop()


def load(batches: Batches, workers: int, device: torch.device) -> Iterator[Batch]:
    """The batches on `device`, drawn by `workers` processes (0: by this one)."""
    loader = DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)
    for each in loader:
        ids, targets, kinds = (part.to(device) for part in (each.ids, each.targets, each.kinds))
        yield Batch(ids, targets, kinds, each.lengths)


def _cut(each: Demonstration, most: int) -> Demonstration:
    if len(each.ids) <= most:
        return each
    return Demonstration(each.ids[:most], each.targets[:most], each.kinds[:most], each.turns)
