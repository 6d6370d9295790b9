"""Compressed heads' rows of cached prefixes on the device, in hot pages that nobody needs: given up at once, the least
recently used first.

Sixteen tokens that follow each other share a group: a hot page for every compressed head. What a group holds is what
the host store holds at its tokens' slots; a slot that is freed is forgotten."""

from collections import OrderedDict
from itertools import islice

import numpy as np
import torch

from hetero_sglang.cache.hot_pool import HotPool
from hetero_sglang.cache.lanes import upload

NOWHERE = -1


class PrefixCache:
    """`page_of` [groups, Hc] int32 on the device: each group's hot pages; a token's place is group * P + its row."""

    def __init__(self, hot: HotPool, slots: int, heads: int, most: int) -> None:
        """`heads`: compressed heads of all layers, which may be none; `most`: groups that every rank has pages for."""
        self.hot, self.heads = hot, heads
        self.page_of = torch.zeros(most, heads, dtype=torch.int32, device=hot.k.device)
        self.place = np.full(slots, NOWHERE, dtype=np.int32)  # [slots]
        self.slots = np.full((most, hot.page_size), NOWHERE, dtype=np.int32)  # of each group's rows
        self.pages = torch.zeros(most, heads, dtype=torch.int64)  # as `page_of`
        self._used: OrderedDict[int, None] = OrderedDict()  # groups, the least recently used first
        self._unused = list(range(most - 1, -1, -1))

    @property
    def groups(self) -> int:
        return len(self._used)

    @property
    def owned(self) -> torch.Tensor:
        """Hot pages of all groups."""
        return self.pages[list(self._used)].flatten()

    def find(self, slots: np.ndarray) -> np.ndarray:
        """Places [n] int32 of tokens at `slots` [n], NOWHERE where they are not; they are the most recently used."""
        found = self.place[slots]
        for group in np.unique(found[found != NOWHERE] // self.hot.page_size).tolist():
            self._used.move_to_end(group)
        return found

    def add(self, slots: np.ndarray, groups: int) -> np.ndarray:
        """Take in the first of `slots` [n] that `groups` new groups have room for: their places [m] int32; the caller
        writes their rows. The pool has the pages, and no slot is known."""
        size = self.hot.page_size
        groups = min(groups, -(-len(slots) // size), len(self._unused))
        taken = self.hot.alloc(groups * self.heads)
        if taken is None:
            raise RuntimeError(f"{groups} groups of a prefix were promised, {self.hot.available} hot pages are free")
        made = [self._unused.pop() for _ in range(groups)]
        self._used.update(dict.fromkeys(made))
        slots = slots[: groups * size]
        rows = np.repeat(np.array(made, dtype=np.int32), size) * size + np.tile(np.arange(size, dtype=np.int32), groups)
        rows = rows[: len(slots)]
        self.place[slots] = rows
        self.slots.reshape(-1)[rows] = slots
        index = torch.tensor(made, dtype=torch.int64)
        self.pages[index] = taken.view(groups, self.heads)
        if groups:
            self.page_of[upload(index, self.page_of.device)] = upload(self.pages[index].int(), self.page_of.device)
        return rows

    def forget(self, slots: np.ndarray) -> int:
        """`slots` [n] were freed: how many groups hold nothing any more, and have given their pages back."""
        rows = self.place[slots]
        rows = rows[rows != NOWHERE]
        self.place[slots] = NOWHERE
        self.slots.reshape(-1)[rows] = NOWHERE
        touched = np.unique(rows // self.hot.page_size)
        empty = touched[(self.slots[touched] == NOWHERE).all(1)] if touched.size else touched
        self._release(empty.tolist())
        return len(empty)

    def give_up(self, count: int, keep: set[int] | None = None) -> int:
        """Free the `count` least recently used groups that are none of `keep`, or as many as there are: how many."""
        gone = list(islice((group for group in self._used if not keep or group not in keep), max(0, count)))
        held = self.slots[gone]
        self.place[held[held != NOWHERE]] = NOWHERE
        self._release(gone)
        return len(gone)

    def _release(self, groups: list[int]) -> None:
        for group in groups:
            del self._used[group]
        self.slots[groups] = NOWHERE
        self._unused += groups
        if groups:
            self.hot.free(self.pages[groups].flatten())

    def rows(self, places: torch.Tensor, numbers: slice) -> torch.Tensor:
        """Flat hot rows [n, C] int64 of tokens at `places` [n] int64, of a layer's compressed heads."""
        size = self.hot.page_size
        return self.page_of[places // size, numbers].long() * size + (places % size)[:, None]
