"""Working sets as the device sees them: caps and page lists by request slot, at addresses that never change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch

from hetero_sglang.cache.lanes import upload
from hetero_sglang.cache.working_set import WorkingSet


@dataclass(frozen=True)
class Listed:
    """Where the list of a set's pages is, which it was when the set had been `moved` so often."""

    count: int
    moved: int
    starts: np.ndarray  # [2, Hc], of each head's pages, and of those of its index


class DeviceTables:
    """`cap`, `page_start` and `index_start` [requests, Hc] int32, `page_list` [3 * pages] int32.

    Head h of the request in slot s owns the hot pages page_list[page_start[s, h] :], as many as its cap needs, and
    those from index_start[s, h] on for its index, where the policy has one. `came` and `told` [requests, 2, Hc] int32:
    rows that came to it since its request began, and those that were too many; on the device, and as the host knows it.
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
        self.came = torch.zeros(requests, 2, heads, dtype=torch.int32, device=device)
        self.told = torch.zeros_like(self.came, device="cpu").pin_memory() if self.came.is_cuda else self.came
        # Every page is in one list, and as many in others' too (Admission.lists): after a repack a third is free.
        self.page_list = torch.zeros(max(1, 3 * pages), dtype=torch.int32, device=device)
        self._end = 0
        self._known: dict[int, tuple[WorkingSet, int, int]] = {}  # by slot: whose rows, of which size, how often moved
        self._counts: dict[int, int] = {}  # by slot, the number of the request that `came` is of
        self._lists: WeakKeyDictionary[WorkingSet, Listed] = WeakKeyDictionary()

    def put(self, sets: Sequence[WorkingSet]) -> bool:
        """Make the rows of these sets' slots theirs; False where they already are. A set that goes on elsewhere keeps
        its list. All of a pass at once: one more may move the others' lists."""
        self._begin([ws for ws in sets if self._counts.get(ws.slot) != ws.tally.number])
        news = [ws for ws in sets if self._known.get(ws.slot) != (ws, ws.final, ws.moved)]
        if not news:
            return False
        self._known |= {ws.slot: (ws, ws.final, ws.moved) for ws in news}
        unlisted = [ws for ws in news if not self._is_listed(ws)]
        if self._end + sum(ws.count for ws in unlisted) > self.page_list.numel():
            self._known = {slot: held for slot, held in self._known.items() if held[0].alive and held[0].slot == slot}
            self._end = 0
            self._lists.clear()
            news = unlisted = [held[0] for held in self._known.values()]
        self._append(unlisted)
        self._point(news)
        return True

    def _begin(self, sets: Sequence[WorkingSet]) -> None:
        """Nothing has come yet to their requests."""
        for ws in sets:
            self._counts[ws.slot] = ws.tally.number
            self.came[ws.slot].zero_()
            if self.came.is_cuda:
                self.told[ws.slot].copy_(self.came[ws.slot], non_blocking=True)

    def counted(self, ws: WorkingSet) -> torch.Tensor:
        """`told` of a set's request, [2, Hc]; nothing until it is put: what is there may be another's."""
        mine = self.told[ws.slot]
        return mine if self._counts.get(ws.slot) == ws.tally.number else torch.zeros_like(mine)

    def _is_listed(self, ws: WorkingSet) -> bool:
        listed = self._lists.get(ws)
        return listed is not None and (listed.count, listed.moved) == (ws.count, ws.moved)

    def _append(self, sets: Sequence[WorkingSet]) -> None:
        start = self._end
        for ws in sets:
            self._lists[ws] = Listed(ws.count, ws.moved, self._end + ws.table.starts.reshape(2, -1))
            self._end += ws.count
        if sets:
            self.page_list[start : self._end] = self._upload(torch.cat([ws.pages for ws in sets]))

    def _point(self, sets: Sequence[WorkingSet]) -> None:
        slots = upload(torch.tensor([ws.slot for ws in sets]), self.device)
        rows = np.stack([(*self._lists[ws].starts, ws.rows.caps) for ws in sets], 1)  # [3, n, Hc]
        start, index, cap = self._upload(torch.from_numpy(rows))
        self.page_start[slots], self.cap[slots] = start, cap
        if self.indexed:
            self.index_start[slots] = index

    def _upload(self, values: torch.Tensor) -> torch.Tensor:
        return upload(values.to(torch.int32), self.device)
