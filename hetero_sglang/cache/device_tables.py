"""Working sets as the device sees them: caps and page lists by request slot, at addresses that never change."""

import torch

from hetero_sglang.cache.lanes import upload
from hetero_sglang.cache.working_set import WorkingSet


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
        self._known: dict[int, tuple[WorkingSet, int, int]] = {}  # by slot: whose lists, of which size, how often moved

    def put(self, slot: int, ws: WorkingSet) -> bool:
        """Make slot's rows those of `ws`; False where they already are: nothing is copied."""
        stamp = (ws, ws.final, ws.moved)
        if self._known.get(slot) == stamp:
            return False
        self._known[slot] = stamp
        if self._end + ws.pages.numel() > self.page_list.numel():
            self._repack()
        else:
            self._append(slot, ws)
        return True

    def _repack(self) -> None:
        self._known = {slot: held for slot, held in self._known.items() if held[0].alive and held[0].slot == slot}
        self._end = 0
        for slot, (ws, *_) in self._known.items():
            self._append(slot, ws)

    def _append(self, slot: int, ws: WorkingSet) -> None:
        if not ws.tables:
            return
        counts = torch.tensor([[t.numel() for t in pages] for pages in (ws.tables, ws.index)])
        starts = self._end + counts.flatten().cumsum(0).view_as(counts) - counts  # [2, Hc]
        end = self._end + int(counts.sum())
        self.page_list[self._end : end] = self._upload(ws.pages)
        self.page_start[slot] = self._upload(starts[0])
        if self.indexed:
            self.index_start[slot] = self._upload(starts[1])
        self.cap[slot] = self._upload(ws.cap)
        self._end = end

    def _upload(self, values: torch.Tensor) -> torch.Tensor:
        return upload(values.to(torch.int32), self.device)
