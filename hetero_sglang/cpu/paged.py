"""Page sizes above 1 on the CPU. SGLang 0.5.17 hands out paged slots with Triton kernels, which need a GPU
driver (srt/mem_cache/allocator/paged.py:197, :238); these hooks hand out the same slots in torch. Later versions do so
by themselves."""

from collections.abc import Callable
from typing import Any

import torch

from hetero_sglang.cpu.platform import cpu_engine

TARGET = "sglang.srt.mem_cache.allocator.paged.PagedTokenToKVPoolAllocator"


def extend_slots(
    prefix_lens: torch.Tensor, seq_lens: torch.Tensor, last_loc: torch.Tensor, free_pages: torch.Tensor, page_size: int
) -> tuple[torch.Tensor, int] | None:
    """Slots [T] int64 for the tokens prefix..seq-1 of each request, in batch order, and the number of pages
    taken from the head of `free_pages`; None where that holds too few.

    `prefix_lens`, `seq_lens`, `last_loc` are [B] ints; `last_loc` is the slot of token prefix-1, unused where
    the prefix ends on a page boundary. A request fills the page it is in before it takes new ones, and the
    batch takes them in order, as SGLang's alloc_extend_kernel does."""
    lens = seq_lens - prefix_lens  # [B]
    boundary = (prefix_lens + page_size - 1) // page_size  # [B] pages already begun
    new_pages = (seq_lens + page_size - 1) // page_size - boundary  # [B]
    used = int(new_pages.sum())
    if used > len(free_pages):
        return None
    request = torch.repeat_interleave(torch.arange(len(lens)), lens)  # [T] row of each new token
    first_token = torch.cumsum(lens, 0) - lens  # [B]
    offset = torch.arange(len(request)) - first_token[request]  # [T] 0-based within the extension
    position = prefix_lens[request] + offset  # [T]
    slots = (last_loc[request] + 1 + offset).to(torch.int64)  # [T] right only inside the page already begun
    page = position // page_size - boundary[request]  # [T] ordinal among the request's new pages
    fresh = page >= 0
    first_page = torch.cumsum(new_pages, 0) - new_pages  # [B]
    pages = free_pages[(first_page[request] + page)[fresh]]
    slots[fresh] = pages * page_size + position[fresh] % page_size
    return slots, used


def alloc_extend(
    orig: Callable[..., torch.Tensor | None],
    self: Any,
    prefix_lens: torch.Tensor,
    prefix_lens_cpu: torch.Tensor,
    seq_lens: torch.Tensor,
    seq_lens_cpu: torch.Tensor,
    last_loc: torch.Tensor,
    extend_num_tokens: int,
    num_new_pages: int | None = None,
) -> torch.Tensor | None:
    """AROUND `alloc_extend`: [extend_num_tokens] slots, or None where the free pages do not suffice."""
    if torch.device(self.device).type != "cpu":
        lens = (prefix_lens, prefix_lens_cpu, seq_lens, seq_lens_cpu)
        return orig(self, *lens, last_loc, extend_num_tokens, num_new_pages)
    return _take(self, prefix_lens, seq_lens, last_loc)


def alloc_decode(
    orig: Callable[..., torch.Tensor | None],
    self: Any,
    seq_lens: torch.Tensor,
    seq_lens_cpu: torch.Tensor,
    last_loc: torch.Tensor,
) -> torch.Tensor | None:
    """AROUND `alloc_decode`: the slot of token seq-1 of each request, or None; an extension by one token."""
    if torch.device(self.device).type != "cpu":
        return orig(self, seq_lens, seq_lens_cpu, last_loc)
    return _take(self, seq_lens - 1, seq_lens, last_loc)


def seams() -> list[tuple[str, Callable[..., Any], Any]]:
    """Both hooks as (target, hook, kind) for SGLang's HookRegistry; none where the engine is not the CPU."""
    from sglang.srt.plugins.hook_registry import HookType

    if not cpu_engine():
        return []
    hooks = (alloc_extend, alloc_decode)
    return [(f"{TARGET}.{hook.__name__}", hook, HookType.AROUND) for hook in hooks]


def _take(self: Any, prefix_lens: torch.Tensor, seq_lens: torch.Tensor, last_loc: torch.Tensor) -> torch.Tensor | None:
    taken = extend_slots(prefix_lens, seq_lens, last_loc, self.free_pages, self.page_size)
    if taken is None and self.need_sort:
        self.merge_and_sort_free()  # frees wait apart where the pool is kept sorted (disaggregation)
        taken = extend_slots(prefix_lens, seq_lens, last_loc, self.free_pages, self.page_size)
    if taken is None:
        return None
    slots, used = taken
    self.free_pages = self.free_pages[used:]
    return slots
