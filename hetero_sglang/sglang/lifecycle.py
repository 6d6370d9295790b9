"""Where requests and token slots begin and end in SGLang."""

import logging
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import numpy as np
import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT

from hetero_sglang.sglang.admit import first_look, grant_of, named_by_tokens, tells_of_prompt, turn_of
from hetero_sglang.sglang.interface import Requests, Slots
from hetero_sglang.sglang.runtime import runtime
from hetero_sglang.sglang.version import installed

logger = logging.getLogger("hetero_sglang")
requests: Requests = installed("requests")
slots: Slots = installed("slots")


def request_slots_given(result: list[int] | None, pool: Any, reqs: list[Any]) -> None:
    """AFTER ReqToTokenPool.alloc: new requests get their working sets; later chunks already have one."""
    state = runtime()
    given = zip(result, reqs, strict=True) if result else ()
    begun = [(slot, req) for slot, req in given if slot not in state.cache.requests]
    turns, cache = [(slot, turn) for slot, req in begun if (turn := turn_of(req))], state.cache
    users = Counter(turn.parked.key for _, turn in turns) + cache.admission.users
    for _, turn in turns:  # before anybody gets pages, which parked sets might be given up for
        turn.alone = turn.alone or (turn.asks and users[turn.parked.key] == 1)
        cache.claim(turn.parked)
    for slot, turn in turns:
        account = turn.whole if turn.alone else turn.shared
        assert account
        cache.resume(slot, turn.parked, account, turn.alone)
        if turn.asks:
            cache.own(cache.requests[slot])
    for slot, req in begun:
        if slot not in state.cache.requests:
            state.cache.start(slot, grant_of(req)).sparse = not tells_of_prompt(req)


def batch_runs(original: Callable[..., Any], scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND Scheduler.run_batch: the request slots of the batch, which the device alone would know otherwise."""
    state = runtime()
    state.current = False
    state.waiting_since = None
    state.batch = [requests.slot(req) for req in batch.reqs]
    verifies = batch.forward_mode.is_decode() and not batch.spec_algorithm.is_none()
    if batch.forward_mode.is_decode():
        state.counters.decoded_tokens += len(state.batch)
    else:
        state.counters.prefilled_tokens += batch.extend_num_tokens or 0
    if batch.out_cache_loc is not None and not verifies:  # which tokens stay is known afterwards
        state.cache.slots_taken(batch.out_cache_loc)
    try:
        return original(scheduler, batch, *args, **kwargs)
    finally:
        state.batch = []
        if state.engine and state.engine.damaged:
            _end_damaged(batch.reqs, state.engine.damaged)


def _end_damaged(reqs: list[Any], damaged: dict[int, int]) -> None:
    """Requests whose host rows have changed by themselves end with that as the reason, before more is answered."""
    for req in reqs:
        if count := damaged.pop(requests.slot(req), 0):
            words = f"host memory has changed under {count} tokens of the request"
            logger.error("heterocache: %s", words)
            req.to_finish = FINISH_ABORT(
                f"{words}: check the machine's memory, and flush the cache before what shares them is asked again",
                HTTPStatus.INTERNAL_SERVER_ERROR, "HostMemoryError",
            )  # fmt: skip


def request_slot_freed(original: Callable[..., None], pool: Any, req: Any) -> None:
    """AROUND ReqToTokenPool.free: finish, abort, retraction and preemption all end here."""
    slot = requests.slot(req)
    original(pool, req)
    state = runtime()
    state.current = False
    if slot in state.cache.requests:
        if state.replies and req.finished():
            ws, account = state.cache.requests[slot], state.cache.admission.accounts[slot]
            length = len(req.origin_input_ids) + len(req.output_ids) - 1  # the last is said, and has no row yet
            state.replies.tell(req, ws, account, state.came(ws), min(length, requests.committed(req)))
        tokens = _known_by(req, state.cache.requests[slot].length)
        if tokens is not None:  # a next turn may come
            state.cache.park(slot, np.asarray(tokens, dtype=np.int64), requests.salt(req))
        else:
            state.cache.finish(slot)
    if state.scheduler is not None:
        state.scheduler.running_batch.batch_is_full = False  # hot pages are free again: try the queue


def _known_by(req: Any, reached: int) -> list[int] | None:
    """Tokens by which a next turn finds the working set of a request that has ended with rows of `reached` tokens; None
    where nobody will."""
    settings, aborted = runtime().settings, isinstance(req.finished_reason, FINISH_ABORT)
    if not (settings.append and reached and req.finished() and named_by_tokens(req)) or aborted:
        return None
    tokens: list[int] = (req.origin_input_ids + req.output_ids)[: requests.kept(req)]
    if reached > len(tokens) + settings.rule.slack:  # as where --strip-thinking-cache keeps prompts alone
        return None
    return tokens


def request_slots_cleared(result: None, pool: Any) -> None:
    """AFTER ReqToTokenPool.clear (cache flush)."""
    if runtime().built:
        runtime().current = False
        runtime().cache.reset()


def slots_freed(original: Callable[..., None], allocator: Any, free_index: torch.Tensor) -> None:
    """AROUND TokenToKVPoolAllocator.free (page size 1): deferred frees come again when their group ends."""
    if slots.frees_now(allocator) and free_index.numel():
        runtime().current = False
        runtime().cache.release_slots(free_index)
    original(allocator, free_index)


def pages_freed(original: Callable[..., None], allocator: Any, *page_ids: torch.Tensor) -> None:
    """AROUND PagedTokenToKVPoolAllocator._release_page_ids: the one way pages of several slots are freed."""
    runtime().current = False
    runtime().cache.release_slots(_slots_of(torch.cat(page_ids), allocator.page_size))
    original(allocator, *page_ids)


def free_slots(allocator: Any) -> torch.Tensor:
    """Token slots [n] that SGLang's allocator holds free now, on its device."""
    return _slots_of(slots.free_pages(allocator), allocator.page_size)


def _slots_of(pages: torch.Tensor, size: int) -> torch.Tensor:
    pages = pages.long()
    return pages if size == 1 else (pages[:, None] * size + torch.arange(size, device=pages.device)).reshape(-1)


def leave_observed_queries(result: int, req: Any, input_len: int) -> int:
    """AFTER Req._compute_max_prefix_len: a prompt that will be compressed on any rank recomputes its last queries.

    They choose the rows its heads keep; a full prefix hit would leave one query to choose by."""
    state = runtime()
    req.skip_radix_cache_insert = req.skip_radix_cache_insert or not named_by_tokens(req)
    if not requests.begun(req) and (shared := first_look(req, result)) is not None:
        return shared  # rows were chosen already
    if state.cache.admission.exact(grant_of(req), input_len):
        return result
    return max(0, min(result, input_len - state.settings.observe))
