"""Lists of pages, one after the other in one tensor: what is done to hundreds of them is one operation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class PageTable:
    """`pages` [n] int64, on the host: `counts[i]` of them are list i's, in order."""

    pages: torch.Tensor
    counts: np.ndarray

    @classmethod
    def empty(cls, lists: int) -> PageTable:
        """So many lists of nothing."""
        return cls(torch.empty(0, dtype=torch.int64), np.zeros(lists, dtype=np.int64))

    @cached_property
    def starts(self) -> np.ndarray:
        """[lists] int64, where each begins."""
        return self.counts.cumsum() - self.counts

    def __getitem__(self, number: int) -> torch.Tensor:
        """[counts[number]], one list."""
        start = int(self.starts[number])
        return self.pages[start : start + int(self.counts[number])]

    def split(self, counts: np.ndarray) -> tuple[PageTable, PageTable]:
        """The first `counts` [lists] pages of each, and the others."""
        early = torch.from_numpy(self._within() < np.repeat(counts, self.counts))
        return PageTable(self.pages[early], counts), PageTable(self.pages[~early], self.counts - counts)

    def followed_by(self, other: PageTable) -> PageTable:
        """Each list with the other's behind it."""
        both = PageTable(self.pages.new_empty(len(self.pages) + len(other.pages)), self.counts + other.counts)
        for part, before in ((self, 0), (other, self.counts)):
            at = part._within() + np.repeat(both.starts + before, part.counts)
            both.pages[torch.from_numpy(at)] = part.pages
        return both

    def _within(self) -> np.ndarray:
        """[n], of each page which of its list it is."""
        return np.arange(len(self.pages)) - np.repeat(self.starts, self.counts)
