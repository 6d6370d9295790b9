"""What one forward pass needs to know of each request: made once per step, used by every layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.cache.working_set import WorkingSet, run_start


@dataclass
class Sequence:
    """One request in this forward: queries [start, start + count) of the batch, `length` tokens in all."""

    ws: WorkingSet
    length: int
    start: int
    count: int
    slots: torch.Tensor  # [length] int64, token slots on the host
    run: int  # first slot when the slots are consecutive, else -1
    exact: bool  # every head holds every token
    last: bool  # the prompt ends with these queries
    looks: bool = False  # pivots look at this step
    slot: int = -1  # request slot
    device_slots: torch.Tensor | None = None  # the prefix's token slots, where an engine wants them on its device

    @property
    def prefix(self) -> int:
        return self.length - self.count


@dataclass
class Plan:
    """A forward's requests; `rows` [batch, heads] are the hot rows that this decode step's tokens go to."""

    sequences: list[Sequence]
    rows: torch.Tensor | None = None


def plan_extend(
    cache: TieredCache, requests: list[int], lengths: list[int], counts: list[int], req_to_token: torch.Tensor
) -> Plan:
    """Plan a prefill: request slots, total lengths, new tokens of each; req_to_token [requests, context]."""
    sequences, start = [], 0
    for request, length, count in zip(requests, lengths, counts, strict=True):
        ws = cache.requests[request]
        ws.slots = req_to_token[request, :length].to("cpu", torch.int64)
        run, exact, last = run_start(ws.slots), ws.exact(length), length >= ws.prompt
        sequences.append(Sequence(ws, length, start, count, ws.slots, run, exact, last, slot=request))
        if last and not exact:
            cache.compressed(ws)
        start += count
    cache.fetcher.publish()
    return Plan(sequences)


def plan_decode(cache: TieredCache, requests: list[int], lengths: list[int], req_to_token: torch.Tensor) -> Plan:
    """Plan a decode step: publishes arrived rows, grows exact requests, places the new token in every head."""
    cache.fetcher.publish()
    sequences, rows = [], []
    for index, (request, length) in enumerate(zip(requests, lengths, strict=True)):
        ws = cache.requests[request]
        ws.slots = req_to_token[request, :length].to("cpu", torch.int64)
        cache.make_room(ws, length)
        rows.append(ws.rows_of_token(length - 1))
        run, exact, looks = run_start(ws.slots), ws.exact(length), cache.monitor.due(ws, length)
        sequences.append(Sequence(ws, length, index, 1, ws.slots, run, exact, last=False, looks=looks))
    plan = Plan(sequences, torch.stack(rows))
    for sequence, where in zip(sequences, rows, strict=True):
        cache.hot.position.view(-1)[where] = sequence.length - 1
        cache.hot.score.view(-1)[where] = 0.0
    return plan
