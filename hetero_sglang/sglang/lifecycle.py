"""Where requests and token slots begin and end in SGLang, and how many requests may begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.managers.schedule_policy import AddReqResult

from hetero_sglang.sglang.runtime import runtime


def lengths_of(req: Any) -> tuple[int, int]:
    """Tokens to prefill and tokens that may follow; a retracted request prefills its own output again."""
    done = len(req.output_ids)
    # a refused request passes through with a prompt of one token, to carry its message
    left = 0 if isinstance(req.to_finish, FINISH_ABORT) else max(req.sampling_params.max_new_tokens - done, 0)
    return len(req.origin_input_ids) + done, left


def request_slots_given(result: list[int] | None, pool: Any, reqs: list[Any]) -> None:
    """AFTER ReqToTokenPool.alloc: new requests get their working sets; later chunks already have one."""
    cache = runtime().cache
    for slot, req in zip(result or (), reqs, strict=True) if result else ():
        if slot not in cache.requests:
            cache.start(slot, *lengths_of(req))


def batch_runs(original: Callable[..., Any], scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND Scheduler.run_batch: the request slots of the batch, which the device alone would know otherwise."""
    state = runtime()
    state.batch = [req.req_pool_idx for req in batch.reqs]
    try:
        return original(scheduler, batch, *args, **kwargs)
    finally:
        state.batch = []


def request_slot_freed(original: Callable[..., None], pool: Any, req: Any) -> None:
    """AROUND ReqToTokenPool.free: finish, abort, retraction and preemption all end here."""
    slot = req.req_pool_idx
    original(pool, req)
    state = runtime()
    if slot in state.cache.requests:
        state.cache.finish(slot)
    if state.scheduler is not None:
        state.scheduler.running_batch.batch_is_full = False  # hot pages are free again: try the queue


def request_slots_cleared(result: None, pool: Any) -> None:
    """AFTER ReqToTokenPool.clear (cache flush)."""
    if runtime().cache is not None:
        runtime().cache.reset()


def slots_freed(original: Callable[..., None], allocator: Any, free_index: torch.Tensor) -> None:
    """AROUND TokenToKVPoolAllocator.free (page size 1): deferred frees come again when their group ends."""
    if allocator.is_not_in_free_group and free_index.numel():
        runtime().cache.release_slots(free_index.cpu())
    original(allocator, free_index)


def pages_freed(original: Callable[..., None], allocator: Any, *page_ids: torch.Tensor) -> None:
    """AROUND PagedTokenToKVPoolAllocator._release_page_ids: the one way pages of several slots are freed."""
    size = allocator.page_size
    pages = torch.cat([p.cpu() for p in page_ids]).long()
    slots = (pages[:, None] * size + torch.arange(size)).reshape(-1)
    runtime().cache.release_slots(slots)
    original(allocator, *page_ids)


def free_slots(allocator: Any) -> torch.Tensor:
    """Token slots that SGLang's allocator holds free now."""
    pages = torch.cat((allocator.free_pages, allocator.release_pages)).cpu().long()
    size = allocator.page_size
    return pages if size == 1 else (pages[:, None] * size + torch.arange(size)).reshape(-1)


def admit(original: Callable[..., Any], adder: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND PrefillAdder.add_one_req: a request waits until the hot pool can hold its working set."""
    state = runtime()
    if lengths_of(req)[0] == 0 and not any(lengths_of(r)[0] for r in adder.can_run_list):
        # SGLang takes an empty prompt's first token from what runs beside it, and dies of a batch without any token
        req.set_finish_with_abort("The prompt is empty and nothing runs beside it: give input_ids at least one token.")
        req.init_next_round_input(adder.tree_cache)
    promised = sum(state.cache.demand(*lengths_of(r)) for r in adder.can_run_list if r.req_pool_idx is None)
    if promised + state.cache.demand(*lengths_of(req)) > state.cache.hot.available:
        state.counters.waiting_for_hot_pages += 1
        return AddReqResult.NO_TOKEN
    return original(adder, req, *args, **kwargs)


def refuse_what_never_fits(original: Callable[..., str | None], req: Any, *args: Any, **kwargs: Any) -> str | None:
    """AROUND validate_input_length: a request larger than the whole hot pool gets a 400 with the numbers."""
    message = original(req, *args, **kwargs)
    if message is not None:
        return message
    state = runtime()
    prompt, max_new = lengths_of(req)
    wanted, have = state.cache.demand(prompt, max_new), state.cache.hot.pages
    if wanted <= have:
        return None
    state.counters.refused_requests += 1
    return (
        f"The request's working set ({wanted} hot pages for {prompt} prompt tokens and up to {max_new} new ones) "
        f"exceeds the hot pool ({have} pages); shorten the prompt, lower max_new_tokens, or start the server with more "
        f"device memory or a smaller --hetero-dense-below (now {state.settings.rule.dense_below})."
    )


def leave_observed_queries(result: int, req: Any, input_len: int) -> int:
    """AFTER Req._compute_max_prefix_len: a prompt that will be compressed recomputes its last queries.

    They choose the rows its heads keep; a full prefix hit would leave one query to choose by.
    """
    settings = runtime().settings
    if input_len < settings.rule.dense_below or min(settings.layout.fractions, default=1.0) == 1.0:
        return result
    return max(0, min(result, input_len - settings.observe))
