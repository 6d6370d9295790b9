"""A decode step's attention in torch, request by request: the oracle, and the way on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hetero_sglang.cache.working_set import ring_row, run_start
from hetero_sglang.ops.base import Arrivals, DecodeKernel, Drafts, LayerBuffers, StepTables, passed
from hetero_sglang.ops.reference.attention import decode_exact, decode_grouped

if TYPE_CHECKING:
    from hetero_sglang.ops.step import DecodeStep


@dataclass(frozen=True)
class _Request:
    """One of the step's requests: token slots [L], rows of each compressed head, and where their page lists begin."""

    slots: torch.Tensor
    run: int  # first slot where they are consecutive, else -1
    caps: list[int]
    starts: list[int]
    exact: bool  # every head holds every token
    length: int


class AttendStep(DecodeKernel):
    """Requests whose heads hold every token get the bits of SGLang's torch_native backend."""

    def __init__(self, step: DecodeStep) -> None:
        self.slots, self.starts, self.group = step.slots, step.starts, step.group
        self.v_dim, self.sink, self.ring, self.runs = step.v_dim, step.sink, step.ring, step.runs
        self.requests: list[_Request | None] = []

    def plan(self, tables: StepTables) -> None:
        self.requests = []
        starts_of = self.starts[: tables.length.numel()].tolist()
        every = zip(tables.length.tolist(), starts_of, tables.cap.tolist(), tables.page_start.tolist(), strict=True)
        for length, start, caps, starts in every:
            if length == 0:
                self.requests.append(None)
                continue
            slots = self.slots[start : start + length].long()
            exact = length <= min(caps, default=length)
            caps = [min(cap, length) for cap in caps]
            self.requests.append(_Request(slots, run_start(slots), caps, starts, exact, length))

    def attend(
        self, layer: int, q: torch.Tensor, buffers: LayerBuffers, tables: StepTables, scale: float,
        ordered: bool = False, arrivals: Arrivals | None = None, drafts: Drafts | None = None,
    ) -> torch.Tensor:  # fmt: skip
        grouped = q.unflatten(1, (-1, self.group))  # [B, H, G, D]
        out = q.new_zeros(*grouped.shape[:-1], self.v_dim)
        more = by_head(arrivals)
        for b, request in enumerate(self.requests):
            if request is None:
                continue
            above = _seen(drafts, b) if drafts else None
            attend = decode_exact if request.exact else decode_grouped
            if buffers.resident.numel():
                heads = buffers.resident
                k, v = (rows.to(q.dtype) for rows in _resident_rows(buffers, request))
                if drafts and above is not None:
                    new = drafts.k[above][:, heads], drafts.v[above][:, heads]
                    k, v = (torch.cat(both) for both in zip((k, v), new, strict=True))
                out[b, heads] = attend(grouped[b, heads], k, v, scale)
            for c, head in enumerate(buffers.compressed.tolist()):
                number = buffers.first + c
                rows = request.caps[number]
                k, v = _hot_rows(buffers, tables.page_list, request.starts[number], rows)
                if self.runs[layer] > 1 and rows < request.length:
                    k, v = self._without_passed(k, v, request.length, self.runs[layer])
                if (b, c) in more:
                    k, v = (torch.cat(both) for both in zip((k, v), more[b, c], strict=True))
                k, v = k.to(q.dtype), v.to(q.dtype)
                if drafts and above is not None:
                    k, v = torch.cat((k, drafts.k[above, head])), torch.cat((v, drafts.v[above, head]))
                out[b, head] = attend(grouped[b, head][None], k[:, None], v[:, None], scale)[0]
        return out.flatten(1, 2)

    def _without_passed(
        self, k: torch.Tensor, v: torch.Tensor, length: int, run: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a full head's rows [cap, D]: those that attention counts."""
        oldest = length - self.ring
        tokens = torch.arange(oldest, oldest + passed(length, self.ring, run), device=k.device)
        counts = torch.ones(len(k), dtype=torch.bool, device=k.device)
        counts[ring_row(tokens, len(k), self.sink, self.ring)] = False
        return k[counts], v[counts]


def _seen(drafts: Drafts, b: int) -> torch.Tensor:
    """Which of all drafts [m] int64 the b-th attends to."""
    bits = int(drafts.seen[b])
    first = b // drafts.each * drafts.each
    return torch.tensor([first + i for i in range(drafts.each) if bits >> i & 1], device=drafts.k.device)


def by_head(arrivals: Arrivals | None) -> dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]:
    """K [n, D] and V [n, Dv] of what has come, by request and compressed head."""
    found = {}
    for each in arrivals.work.arrived if arrivals else []:
        for c in each.head.unique().tolist():
            mine = (each.head == c).to(each.k.device)
            found[each.request, c] = each.k[mine], each.v[mine]
    return found


def _resident_rows(buffers: LayerBuffers, request: _Request) -> tuple[torch.Tensor, torch.Tensor]:
    """K [L, R, D] and V [L, R, Dv]; views where slots are consecutive."""
    if request.run >= 0:
        rows = slice(request.run, request.run + request.slots.numel())
        return buffers.resident_k[rows], buffers.resident_v[rows]
    return buffers.resident_k.index_select(0, request.slots), buffers.resident_v.index_select(0, request.slots)


def _hot_rows(
    buffers: LayerBuffers, page_list: torch.Tensor, start: int, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """K [rows, D] and V [rows, Dv] of a head; views where its pages are consecutive."""
    page = buffers.hot_k.shape[1]
    listed = page_list[start : start - (-rows // page)]
    first = run_start(listed)
    if first >= 0:
        k, v = (store[first : first + listed.numel()] for store in (buffers.hot_k, buffers.hot_v))
    else:
        k, v = (store.index_select(0, listed.long()) for store in (buffers.hot_k, buffers.hot_v))
    return k.reshape(-1, k.shape[-1])[:rows], v.reshape(-1, v.shape[-1])[:rows]
