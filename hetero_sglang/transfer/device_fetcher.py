"""Fetches whose rows go to a device: copied beside the decode steps, scattered between two of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hetero_sglang.cache.lanes import Lane, Mark, mark, upload
from hetero_sglang.cache.working_set import WorkingSet
from hetero_sglang.ops.triton.publish import publish
from hetero_sglang.transfer.client import Fetched, RetrievalClient
from hetero_sglang.transfer.fetcher import Anchor, Fetcher, PendingFetch


@dataclass
class Landing:
    """Rows in the mirror of the staging ring once `copied` is passed."""

    pending: PendingFetch
    ticket: int
    k: torch.Tensor  # [n, D]
    v: torch.Tensor  # [n, Dv]
    copied: Mark


@dataclass(frozen=True)
class Ranked:
    """What the worker found out about an anchor: of `length` tokens, it is to be refilled by these."""

    ws: WorkingSet
    number: int
    positions: torch.Tensor  # [k] int32, ascending
    scores: torch.Tensor  # [k]
    length: int


@dataclass
class DeviceFetcher(Fetcher):
    """Owns the copy lane and the device's mirror of the staging ring; nothing here waits for the device."""

    landings: list[Landing] = field(default_factory=list)
    ranked: list[Ranked] = field(default_factory=list)  # for the device's monitor, which knows what heads hold

    def __post_init__(self) -> None:
        self.device = self.hot.k.device
        self.lane = Lane(self.device, urgent=False)
        self.mirror: torch.Tensor | None = None  # bytes of the staging ring
        self.scattered = mark(self.device)  # the latest scatter, after all others: the mirror's free rows are unread

    @property
    def under_way(self) -> int:
        return super().under_way + len(self.landings)

    def _ranked(
        self, ws: WorkingSet, anchor: Anchor, positions: torch.Tensor, found: torch.Tensor, length: int
    ) -> None:
        """Leave it to the device's monitor which rows go."""
        self.ranked.append(Ranked(ws, anchor.number, positions, found, length))
        ws.busy.add(anchor.number)  # until its rows are chosen: another ranking now would choose them twice

    def _poll(self, client: RetrievalClient) -> None:
        flying, self.landings = self.landings, []
        for landing in flying:
            if not landing.copied.passed:
                self.landings.append(landing)
                continue
            self._land(landing.pending, landing.ticket, landing.k, landing.v)
        super()._poll(client)

    def _arrived(self, pending: PendingFetch, done: Fetched) -> None:
        """One copy for all rows of the fetch."""
        assert self.client is not None, "rows came from it"
        ring = self.client.ring
        if self.mirror is None:
            self.mirror = torch.empty(ring.rows * ring.row_bytes, dtype=torch.uint8, device=self.device)
        rows = ring.raw(done.start, done.k.shape[0])
        at = done.start * ring.row_bytes
        target = self.mirror[at : at + rows.numel()]
        self.lane.follow(self.scattered)
        with self.lane:
            target.copy_(rows, non_blocking=True)
        k, v = target.view(done.k.dtype).view(len(done.k), -1).split((done.k.shape[1], done.v.shape[1]), 1)
        self.landings.append(Landing(pending, done.ticket, k, v, self.lane.mark()))

    def _put(
        self, rows: torch.Tensor, positions: torch.Tensor, scores: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        """One copy of where they go, one launch; marked in the stream that it goes to, whichever that is."""
        self.scattered.hold(self.device)  # one mark stands for all scatters, so they stay in order
        places = torch.stack((rows.int(), positions.int(), scores.view(torch.int32)))  # [3, n]
        publish(upload(places, self.device), k, v, self.hot)
        self.scattered = mark(self.device)
