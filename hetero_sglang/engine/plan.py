"""What a prefill pass needs to know of each request: made once per pass, used by every layer."""

from dataclasses import dataclass

import torch

from hetero_sglang.cache.tiers import TieredCache
from hetero_sglang.cache.working_set import WorkingSet


@dataclass(frozen=True, eq=False)
class Sources:
    """Where rows of a prompt's tokens lie; all int64 on the device."""

    known: torch.Tensor  # [n], tokens of the prefix that the device has
    places: torch.Tensor  # [n], in the cache of prefixes
    brought: torch.Tensor  # [prefix - n], tokens that come from the host
    kept: torch.Tensor  # [m], tokens that the device is to keep
    kept_places: torch.Tensor  # [m]


NONE = torch.empty(0, dtype=torch.int64)
NOTHING = Sources(*[NONE] * 5)


@dataclass
class Prompt:
    """One request in this pass: queries [start, start + count) of the batch, `length` tokens in all."""

    ws: WorkingSet
    length: int
    start: int
    count: int
    slots: torch.Tensor  # [length] int32, token slots, on the device
    exact: bool  # every head will hold every token that the request is made for
    last: bool  # the prompt ends with these queries
    held: bool = False  # its working set has every token of the prefix
    whole: bool = False  # its heads will have every token, and lack no more than the new ones
    appends: bool = False  # its working set goes on: what new tokens attend to is that
    restores: bool = False  # once its new tokens have said what it is to hold of their prefix
    sources: Sources = NOTHING  # where it does not

    @property
    def prefix(self) -> int:
        """Tokens before these queries."""
        return self.length - self.count

    @property
    def fresh(self) -> slice:
        """The request's new tokens among the pass's."""
        return slice(self.start, self.start + self.count)


def plan_extend(
    cache: TieredCache, requests: list[int], lengths: list[int], counts: list[int], req_to_token: torch.Tensor
) -> list[Prompt]:
    """Plan a prefill: request slots, total lengths, new tokens of each; req_to_token [requests, context]."""
    prompts, start = [], 0
    every = torch.cat([req_to_token[request, :length] for request, length in zip(requests, lengths, strict=True)])
    for request, slots, count in zip(requests, every.int().split(lengths), counts, strict=True):
        ws, length = cache.requests[request], len(slots)
        last, prefix = length >= ws.prompt, length - count
        goes_on = 0 < prefix <= ws.length
        held = goes_on and ws.exact(max(length, ws.length))
        begins = last and ws.sparse and not ws.length and not ws.tail
        restores = begins and cache.restorable(ws, slots[:prefix], count)
        appends = restores or (goes_on and not held)
        whole = held or (last and not prefix and ws.exact(length) and not ws.indexed)
        exact = ws.exact(ws.final)
        prompts.append(Prompt(ws, length, start, count, slots, exact, last, held, whole, appends, restores))
        if last and not ws.exact(length):
            cache.compressed(ws)
        start += count
    return prompts
