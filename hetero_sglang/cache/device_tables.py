"""Working sets as the device sees them: caps and page lists by request slot, at addresses that never change."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from hetero_sglang.cache.lanes import upload
from hetero_sglang.cache.working_set import WorkingSet


@dataclass(frozen=True)
class Listed:
    """Where the list of a set's pages is, which it was when the set had been `moved` so often."""

    count: int
    moved: int
    starts: torch.Tensor  # [2, Hc], of each head's pages, and of those of its index


class DeviceTables:
    """`cap`, `page_start` and `index_start` [requests, Hc] int32, `page_list` [3 * pages] int32.

    Head h of the request in slot s owns the hot pages page_list[page_start[s, h] :], as many as its cap needs, and
    those from index_start[s, h] on for its index, where the policy has one.
    Written on the stream that runs the forward passes, so a step never sees half a change."""

    def __init__(
        self, requests: int, heads: int, pages: int, device: torch.device | str, indexed: bool = False
    ) -> None:
        """`indexed`: requests have indexes in hot pages."""
        self.indexed = indexed
        self.device = torch.device(device)
        self.cap = torch.zeros(requests, heads, dtype=torch.int32, device=device)
        self.page_start = torch.zeros(requests, heads, dtype=torch.int32, device=device)
        self.index_start = torch.zeros_like(self.cap)
        # Every page is in one list, and as many in others' too (Admission.lists): after a repack a third is free.
        self.page_list = torch.zeros(max(1, 3 * pages), dtype=torch.int32, device=device)
        self._end = 0
        self._known: dict[int, tuple[WorkingSet, int, int]] = {}  # by slot: whose rows, of which size, how often moved
        self._lists: WeakKeyDictionary[WorkingSet, Listed] = WeakKeyDictionary()

    def put(self, slot: int, ws: WorkingSet) -> bool:
        """Make slot's rows those of `ws`; False where they already are. A set that goes on elsewhere keeps its list."""
        stamp = (ws, ws.final, ws.moved)
        if self._known.get(slot) == stamp:
            return False
        self._known[slot] = stamp
        listed, count = self._lists.get(ws), ws.count
        if listed is not None and (listed.count, listed.moved) == (count, ws.moved):
            self._point(slot, ws, listed)
        elif self._end + count > self.page_list.numel():
            self._repack()
        else:
            self._append(slot, ws)
        return True

    def _repack(self) -> None:
        self._known = {slot: held for slot, held in self._known.items() if held[0].alive and held[0].slot == slot}
        self._end = 0
        self._lists.clear()
        for slot, (ws, *_) in self._known.items():
            self._append(slot, ws)

    def _append(self, slot: int, ws: WorkingSet) -> None:
        if not ws.tables:
            return
        counts = torch.tensor([[t.numel() for t in pages] for pages in (ws.tables, ws.index)])
        starts = self._end + counts.flatten().cumsum(0).view_as(counts) - counts  # [2, Hc]
        count = int(counts.sum())
        self.page_list[self._end : self._end + count] = self._upload(ws.pages)
        listed = self._lists[ws] = Listed(count, ws.moved, starts)
        self._end += count
        self._point(slot, ws, listed)

    def _point(self, slot: int, ws: WorkingSet, listed: Listed) -> None:
        self.page_start[slot] = self._upload(listed.starts[0])
        if self.indexed:
            self.index_start[slot] = self._upload(listed.starts[1])
        self.cap[slot] = self._upload(ws.cap)

    def _upload(self, values: torch.Tensor) -> torch.Tensor:
        return upload(values.to(torch.int32), self.device)
