"""How many requests may begin: SGLang's admission and preemption (managers/schedule_policy.py), with hot pages."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.managers.schedule_policy import AddReqResult

from hetero_sglang.config.caps import Grant
from hetero_sglang.sglang.interface import Requests, Scheduling, Slots
from hetero_sglang.sglang.runtime import Turn, runtime
from hetero_sglang.sglang.version import installed

requests: Requests = installed("requests")
slots: Slots = installed("slots")
scheduling: Scheduling = installed("scheduling")


def grant_of(req: Any) -> Grant:
    """What the request holds once it begins, the same on every rank."""
    # a refused request passes through with a prompt of one token, to carry its message
    most = 0 if isinstance(req.to_finish, FINISH_ABORT) else req.sampling_params.max_new_tokens
    state = runtime()
    shares = state.shares_of(req.lora_id)
    return state.cache.admission.grant(len(req.origin_input_ids), most, len(req.output_ids), shares)


def tells_of_prompt(req: Any) -> bool:
    """Whether the answer holds what its prompt's tokens have seen: all before them, not a working set."""
    asked = req.return_logprob and 0 <= req.logprob_start_len < len(req.origin_input_ids)
    return bool(asked or req.return_hidden_states)


def named_by_tokens(req: Any) -> bool:
    """Whether its token ids say all of its prompt. SGLang 0.5.17 lets others share rows made of overridden embeddings
    by them (schedule_batch.py:1295 keeps it from theirs alone), and ids beside a prompt of embeddings are made up."""
    return req.input_embeds is None and req.positional_embed_overrides is None


def first_look(req: Any, most: int) -> int | None:
    """Before the radix tree is asked for `most` tokens at most: for how many it is asked so that the request goes on
    with a parked set. None: there is no such set.

    The tree may have more of the prompt than the set was made of: there the set has rows of somebody else's tokens. If
    it has much more, the request begins with that instead."""
    state, tokens = runtime(), np.asarray(req.full_untruncated_fill_ids, dtype=np.int64)
    state.turns.pop(req.rid, None)
    if tells_of_prompt(req) or not named_by_tokens(req):
        return None
    parked = state.cache.parking.find(tokens, requests.salt(req))
    if parked is None:
        return None
    prefix = min(most, parked.shared(tokens))
    if state.cache.resumable(parked, grant_of(req), prefix, len(tokens)) is None:
        return None
    slack, tree = state.settings.rule.slack, state.scheduler.tree_cache
    if most - prefix > slack and slots.matched(tree, req, most) - prefix > slack:
        return None
    state.turns[req.rid] = Turn(parked)
    return prefix


def turn_of(req: Any) -> Turn | None:
    """How the request goes on with a parked set, now that it knows its prefix; None: it begins."""
    turn = runtime().turns.get(req.rid)
    if turn is not None and turn.pages is None and not _promise(turn, req):
        del runtime().turns[req.rid]
        return None
    return turn


def _promise(turn: Turn, req: Any, alone: bool = False) -> bool:
    """Work out what the request holds beside those of this pass; False: it had better begin.

    It shares the set, so that others may; or it has it `alone`, which takes a few pages less."""
    cache, parked = runtime().cache, turn.parked
    books, key = cache.admission, parked.key
    others = [each for each in runtime().turns.values() if each.pages is not None and each is not turn]
    same = [each for each in others if each.parked is parked]
    joins = bool(books.users[key] or same)
    prefix, length = requests.prefix(req), len(req.full_untruncated_fill_ids)
    whole = cache.resumable(parked, grant_of(req), prefix, length)
    if whole is None or any(each.alone for each in same) or (alone and joins):
        return False
    shared, asks = books.sharing(key, whole, parked.ws.length), length - prefix > 1
    alone = alone or cache.index is None  # other rules than the index's might write to any row
    if not books.lists(sum((each.shared.shared for each in others if each.shared), shared.shared)):
        if joins:
            return False
        alone = True
    turn.whole, turn.shared, turn.alone, turn.asks = whole, shared, alone, asks
    if joins:
        turn.pages = whole.pages if asks else shared.pages
    else:
        turn.pages = whole.pages if alone else shared.pages + books.parked[key].pages
    return True


def demand_of(req: Any) -> np.ndarray:
    """Hot pages [ranks] that the request holds once it runs; a parked set's are given up for it."""
    turn = turn_of(req)
    return runtime().cache.admission.demand(grant_of(req)) if turn is None or turn.pages is None else turn.pages


def admit(original: Callable[..., Any], adder: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND PrefillAdder.add_one_req: a request waits until every rank's hot pool can hold its working set."""
    state = runtime()
    if adder.can_run_list and (req.input_embeds is None) != (adder.can_run_list[0].input_embeds is None):
        return AddReqResult.OTHER  # a batch of SGLang's is all embeddings or all tokens: the model fails on both
    fits = state.cache.admission.fits
    if not fits(demand_of(req), promised(adder)) and (turn := turn_of(req)):
        _promise(turn, req, alone=True)  # which takes less, where it may be
    if not fits(demand_of(req), promised(adder)) and not (
        state.scheduler.enable_priority_preemption and scheduling.preempt(adder, req, state.scheduler)
    ):
        state.counters.waiting_for_hot_pages += 1
        req.hetero_waits_since = getattr(req, "hetero_waits_since", time.monotonic())
        return AddReqResult.NO_TOKEN
    result = original(adder, req, *args, **kwargs)
    if adder.can_run_list and adder.can_run_list[-1] is req:
        if (since := vars(req).pop("hetero_waits_since", None)) is not None:
            state.counters.hot_page_wait.add(time.monotonic() - since)
    elif result is AddReqResult.NO_TOKEN:
        state.counters.waiting_for_token_slots += 1
    else:
        state.counters.waiting_for_prefill += 1
    return result


def promised(adder: Any) -> np.ndarray:
    """Hot pages [ranks] of requests this pass has let in, which hold none yet; each is counted once in a pass."""
    admission = runtime().cache.admission
    seen, pages = getattr(adder, "hetero_promised", (0, np.zeros_like(admission.free)))
    for req in adder.can_run_list[seen:]:
        if not requests.begun(req):  # else a chunk of a request that has begun
            pages = pages + demand_of(req)
    adder.hetero_promised = len(adder.can_run_list), pages
    return pages


def preempt(original: Callable[..., bool], adder: Any, req: Any, *more: Any) -> bool:
    """AROUND PrefillAdder.preempt_to_schedule: as many are preempted as slots, tokens and hot pages ask for.

    Nothing is released unless those who may be preempted hold enough pages together."""
    state = runtime()
    admission, demand = state.cache.admission, demand_of(req)
    if not admission.fits(demand, promised(adder), freed=_preemptible_pages(adder, req)):
        return False
    state.preempted = adder.preempt_list
    preempted = original(adder, req, *more)
    while preempted and not admission.fits(demand, promised(adder)):
        preempted = original(adder, req, *more)
    return preempted


def _preemptible_pages(adder: Any, req: Any) -> np.ndarray:
    """Hot pages [ranks] of the running requests that SGLang would preempt for this one."""
    admission = runtime().cache.admission
    sign = 1 if runtime().scheduler.schedule_low_priority_values_first else -1
    least = adder.priority_scheduling_preemption_threshold
    pages = np.zeros_like(admission.free)
    for other in adder.running_batch.reqs:
        urgency = (req.priority - other.priority) * -sign
        if urgency > least and other not in adder.preempt_list and not other.finished():
            pages = pages + admission.accounts[requests.slot(other)].pages
    return pages


def choose_batch(original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND Scheduler._get_new_batch_prefill_raw: a pass that lets nobody in leaves the queue able to move.

    SGLang keeps a batch marked full that is empty, and may put preempted requests back only where somebody came in."""
    state = runtime()
    state.preempted = []
    state.turns.clear()
    batch, running = original(scheduler, *args, **kwargs)
    if batch is None:
        for req in () if scheduling.REQUEUES else state.preempted:
            scheduler._add_request_to_queue(req)
        if running.is_empty():
            running.batch_is_full = False
    state.preempted = []
    return batch, running
