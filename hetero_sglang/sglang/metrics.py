"""Every metric of ours on /metrics: its name, what it means, and whose number it is."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hetero_sglang.cache.durations import Durations

if TYPE_CHECKING:
    from hetero_sglang.sglang.runtime import Runtime

PREFIX = "sglang:hetero_"
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
FINE = ("ok", "not checked yet")  # verdicts of the integrity check

Value = float | Mapping[str, float] | Durations


@dataclass(frozen=True)
class Metric:
    """`read`: the number now, since the start where it is a counter; by the value of `label` where there is one. Of a
    histogram, what hears of every time that is taken; its buckets are SECONDS."""

    name: str
    kind: str
    help: str
    read: Callable[["Runtime"], Value]
    label: str | None = None


def _counted(name: str) -> Callable[["Runtime"], Value]:
    """One of `Counters`."""
    return lambda state: getattr(state.counters, name)


def _level(name: str) -> Callable[["Runtime"], Value]:
    """One of `TieredCache.levels`."""
    return lambda state: state.cache.levels()[name]


def _by_way(state: "Runtime") -> dict[str, float]:
    counters = state.counters
    return {"kernel": counters.fetched_rows - counters.worker_rows, "worker": counters.worker_rows}


def _bytes_by_way(state: "Runtime") -> dict[str, float]:
    host = state.cache.host
    row = (host.head_dim + host.v_head_dim) * host.dtype.itemsize
    return {way: rows * row for way, rows in _by_way(state).items()}


def _prefix_rows(state: "Runtime") -> dict[str, float]:
    counters = state.counters
    return {
        "copy": counters.prefix_rows_copied,
        "kernel": counters.prefix_rows_read,
        "held": counters.prefix_rows_held,
    }


def _delayed(state: "Runtime") -> dict[str, float]:
    counters = state.counters
    return {
        "hot_pages": counters.waiting_for_hot_pages,
        "token_slots": counters.waiting_for_token_slots,
        "prefill": counters.waiting_for_prefill,
    }


def _reassigned(state: "Runtime") -> dict[str, float]:
    return {"pivot": state.counters.reassigned, "none": state.counters.orphaned}


def _hot_pages(state: "Runtime") -> dict[str, float]:
    return dict(state.cache.page_states())


def _worker_up(state: "Runtime") -> float:
    return state.engine.worker()["worker_up"] if state.engine else 0


def _rankings_under_way(state: "Runtime") -> float:
    return state.engine.worker()["rankings_under_way"] if state.engine else 0


def _slots(state: "Runtime") -> tuple[int, int]:
    """Token slots that requests or the radix tree hold, and all."""
    scheduler = state.scheduler
    total = scheduler.max_total_num_tokens
    return total - scheduler.token_to_kv_pool_allocator.available_size(), total


def _used(state: "Runtime") -> dict[str, float]:
    return {name: tier.used for name, tier in state.cache.tiers(*_slots(state)).items()}


def _total(state: "Runtime") -> dict[str, float]:
    return {name: tier.total for name, tier in state.cache.tiers(*_slots(state)).items()}


def _used_bytes(state: "Runtime") -> dict[str, float]:
    return {name: tier.used * tier.token_bytes for name, tier in state.cache.tiers(*_slots(state)).items()}


def _total_bytes(state: "Runtime") -> dict[str, float]:
    return {name: tier.nbytes for name, tier in state.cache.tiers(*_slots(state)).items()}


METRICS = (
    Metric("active", GAUGE, "Always 1 where a KV policy of this plugin serves, and absent elsewhere.", lambda state: 1),
    # requests
    Metric("requests_total", COUNTER, "Requests that got a working set, once more after a retraction.",
           _counted("requests")),
    Metric("resumed_requests_total", COUNTER, "Requests that went on with the working set of one that had ended.",
           _counted("resumed_requests")),
    Metric("shared_requests_total", COUNTER, "Resumed requests whose working set others went on with too.",
           _counted("shared_requests")),
    Metric("restored_requests_total", COUNTER, "Requests whose working set was made of a cached prefix's key index.",
           _counted("restored_requests")),
    Metric("compressed_requests_total", COUNTER, "Requests whose prompt ended longer than its working set.",
           _counted("compressed_requests")),
    Metric("appended_tokens_total", COUNTER,
           "New tokens of prompts that attended to a working set and not to the whole prefix.",
           _counted("appended_tokens")),
    Metric("kept_bytes_total", COUNTER, "Device bytes that compressed requests held when their prompts ended.",
           _counted("kept_bytes")),
    Metric("dense_bytes_total", COUNTER, "Device bytes that plain SGLang would have held for the same prompts.",
           _counted("dense_bytes")),
    Metric("live_requests", GAUGE, "Requests that hold a working set now.", _level("live_requests")),
    Metric("parked_requests", GAUGE, "Working sets of ended requests that wait for a next turn.",
           _level("parked_requests")),
    # admission
    Metric("admissions_delayed_total", COUNTER,
           "Attempts to admit a request that were put off because hot pages or token slots were short, or because the "
           "pass had enough to prefill.", _delayed, "reason"),
    Metric("admissions_refused_total", COUNTER,
           "Requests that the scheduler refused because they could not be read.",
           lambda state: {"unreadable": state.counters.refused_requests}, "reason"),
    Metric("refused_growths_total", COUNTER,
           "Long generations that found the hot pool full when they outgrew their rows, and began to compress.",
           _counted("refused_growth")),
    Metric("hot_page_wait_seconds", HISTOGRAM,
           "How long a request that was put off for hot pages waited, from the first time until it was admitted.",
           lambda state: state.counters.hot_page_wait),
    # tiers
    Metric("tier_used_tokens", GAUGE,
           "Tokens that a tier holds; of the hot tier, used rows divided by the compressed heads.", _used, "tier"),
    Metric("tier_capacity_tokens", GAUGE,
           "Tokens that a tier could hold; of the hot tier, all rows divided by the compressed heads.", _total, "tier"),
    Metric("tier_used_bytes", GAUGE, "Bytes that the tokens of a tier take.", _used_bytes, "tier"),
    Metric("tier_capacity_bytes", GAUGE, "Bytes that a tier has allocated.", _total_bytes, "tier"),
    Metric("hot_pages", GAUGE,
           "Hot pages by what they are: used by live requests, free, parked for a next turn, or prefix where they hold "
           "rows of cached prefixes; whoever needs the last two kinds gets them.", _hot_pages, "state"),
    Metric("shared_hot_pages", GAUGE, "Hot pages that live requests share with a parked working set, once for each.",
           _level("hot_pages_shared")),
    Metric("prefix_held_tokens", GAUGE, "Tokens of cached prefixes whose rows the device holds.",
           _level("prefix_tokens_held")),
    Metric("prefix_rows_total", COUNTER,
           "Rows of cached prefixes that prefills wanted, a token and layer each: copied from the host in whole "
           "blocks, read there one by one by a kernel, or held by the device.", _prefix_rows, "way"),
    # retrieval
    Metric("drift_looks_total", COUNTER, "Looks at whether a satellite holds what its pivot attends to.",
           _counted("drift_checks")),
    Metric("drift_triggers_total", COUNTER, "Looks that found too little held, so that the satellite was refilled.",
           _counted("drift_triggers")),
    Metric("fetched_rows_total", COUNTER,
           "Rows of single heads that came from the host: by a kernel in the step that wanted them, or for rankings of "
           "the worker.", _by_way, "way"),
    Metric("fetched_bytes_total", COUNTER, "Bytes of the rows that came from the host.", _bytes_by_way, "way"),
    Metric("late_rows_total", COUNTER,
           "Rows that a step wanted and that did not come in it, because they were too many or no row was free.",
           _counted("late_rows")),
    Metric("reassignments_total", COUNTER, "Satellites that were given another pivot, or none that resembles them.",
           _reassigned, "to"),
    # the worker
    Metric("rankings_total", COUNTER, "Anchor heads whose tokens the worker was asked to rank.",
           _counted("anchor_refreshes")),
    Metric("rankings_under_way", GAUGE, "Questions that the worker has not answered yet.", _rankings_under_way),
    Metric("ranking_seconds", HISTOGRAM, "How long an answer of the worker took, from the question to its arrival.",
           lambda state: state.counters.ranking),
    Metric("failed_rankings_total", COUNTER, "Questions lost because the worker died, stalled or answered wrongly.",
           _counted("failed_rankings")),
    Metric("refused_rankings_total", COUNTER, "Questions not asked because the worker was down or had too much to do.",
           _counted("refused_rankings")),
    Metric("worker_up", GAUGE, "1 while a retrieval worker runs, 0 where it is down or none is needed.", _worker_up),
    Metric("worker_restarts_total", COUNTER, "Retrieval workers started after the first.", _counted("worker_restarts")),
    # integrity
    Metric("integrity_ok", GAUGE, "0 where the latest integrity check found memory lost or a stuck queue, else 1.",
           lambda state: state.check.verdict in FINE),
    Metric("integrity_age_seconds", GAUGE,
           "Seconds since the latest integrity check, which runs whenever the server has become idle.",
           lambda state: time.monotonic() - state.check.at),
)  # fmt: skip
