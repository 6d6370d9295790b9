"""Every metric of ours on /metrics: its name, what it means, and whose number it is."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hetero_sglang.cache.durations import Durations
from hetero_sglang.cache.shares import Shares
from hetero_sglang.ops.base import LAYER_GROUPS, SHARES

if TYPE_CHECKING:
    from hetero_sglang.cache.tiers import Tier
    from hetero_sglang.sglang.runtime import Runtime

PREFIX = "sglang:hetero_"
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TENTHS = tuple(part / SHARES for part in range(1, SHARES + 1))
FINE = ("ok", "not checked yet")  # verdicts of the integrity check

Value = float | Mapping[str, float] | Durations | Shares


class Reading:
    """A rank's numbers of one moment, each asked for once."""

    def __init__(self, state: "Runtime") -> None:
        self.state, self.counters = state, state.counters

    @cached_property
    def levels(self) -> dict[str, int]:
        return self.state.cache.levels()

    @cached_property
    def hot_pages(self) -> dict[str, int]:
        return self.state.cache.page_states()

    @cached_property
    def tiers(self) -> dict[str, "Tier"]:
        """A token slot is taken while a request or the radix tree holds it."""
        scheduler = self.state.scheduler
        slots = scheduler.max_total_num_tokens
        return self.state.cache.tiers(slots - scheduler.token_to_kv_pool_allocator.available_size(), slots)

    @cached_property
    def worker(self) -> dict[str, int | bool]:
        return self.state.engine.worker() if self.state.engine else {}

    @cached_property
    def ways(self) -> dict[str, int]:
        """Rows from the host."""
        ranked = self.counters.worker_rows
        return {"kernel": self.counters.fetched_rows - ranked, "worker": ranked}

    @cached_property
    def row_bytes(self) -> int:
        host = self.state.cache.host
        return (host.head_dim + host.v_head_dim) * host.dtype.itemsize


@dataclass(frozen=True)
class Metric:
    """`read`: the number now, since the start where it is a counter; by the value of `label` where there is one. Of a
    histogram, what hears of every time that is taken, whose buckets are SECONDS; or Shares, in TENTHS."""

    name: str
    kind: str
    help: str
    read: Callable[[Any], Value]
    label: str | None = None


def _counted(**names: str) -> Callable[[Reading], Value]:
    """Of `Counters`, by the label's value."""
    return lambda now: {which: getattr(now.counters, name) for which, name in names.items()}


def _count(name: str) -> Callable[[Reading], Value]:
    """One of `Counters`."""
    return lambda now: getattr(now.counters, name)


def _level(name: str) -> Callable[[Reading], Value]:
    """One of `TieredCache.levels`."""
    return lambda now: now.levels[name]


def _quarters(counts: Sequence[int]) -> dict[str, float]:
    """By group of layers, from the first ones on."""
    return {f"{at + 1}/{LAYER_GROUPS}": count for at, count in enumerate(counts)}


def _tier(number: Callable[["Tier"], float]) -> Callable[[Reading], Value]:
    return lambda now: {name: number(tier) for name, tier in now.tiers.items()}


METRICS = (
    Metric("active", GAUGE, "Always 1 where a KV policy of this plugin serves, and absent elsewhere.", lambda now: 1),
    # requests
    Metric(
        "requests_total", COUNTER, "Requests that got a working set, once more after a retraction.", _count("requests")
    ),
    Metric(
        "resumed_requests_total",
        COUNTER,
        "Requests that went on with the working set of one that had ended.",
        _count("resumed_requests"),
    ),
    Metric(
        "shared_requests_total",
        COUNTER,
        "Resumed requests whose working set others went on with too.",
        _count("shared_requests"),
    ),
    Metric(
        "restored_requests_total",
        COUNTER,
        "Requests whose working set was made of a cached prefix's key index.",
        _count("restored_requests"),
    ),
    Metric(
        "compressed_requests_total",
        COUNTER,
        "Requests whose prompt ended longer than its working set.",
        _count("compressed_requests"),
    ),
    Metric(
        "appended_tokens_total",
        COUNTER,
        "New tokens of prompts that attended to a working set and not to the whole prefix.",
        _count("appended_tokens"),
    ),
    Metric(
        "draft_tokens_total",
        COUNTER,
        "Draft tokens that were verified.",
        _count("draft_tokens"),
    ),
    Metric(
        "accepted_tokens_total",
        COUNTER,
        "Draft tokens that the model would have said too, and that have stayed.",
        _count("accepted_tokens"),
    ),
    Metric(
        "kept_bytes_total",
        COUNTER,
        "Device bytes that compressed requests held when their prompts ended.",
        _count("kept_bytes"),
    ),
    Metric(
        "dense_bytes_total",
        COUNTER,
        "Device bytes that plain SGLang would have held for the same prompts.",
        _count("dense_bytes"),
    ),
    Metric("live_requests", GAUGE, "Requests that hold a working set now.", _level("live_requests")),
    Metric(
        "parked_requests", GAUGE, "Working sets of ended requests that wait for a next turn.", _level("parked_requests")
    ),
    # admission
    Metric(
        "admissions_delayed_total",
        COUNTER,
        "Attempts to admit a request that were put off because hot pages or token slots were short, or because the "
        "pass had enough to prefill.",
        _counted(
            hot_pages="waiting_for_hot_pages", token_slots="waiting_for_token_slots", prefill="waiting_for_prefill"
        ),
        "reason",
    ),
    Metric(
        "admissions_refused_total",
        COUNTER,
        "Requests that the scheduler refused because they could not be read.",
        _counted(unreadable="refused_requests"),
        "reason",
    ),
    Metric(
        "refused_growths_total",
        COUNTER,
        "Long generations that found the hot pool full when they outgrew their rows, and began to compress.",
        _count("refused_growth"),
    ),
    Metric(
        "hot_page_wait_seconds",
        HISTOGRAM,
        "How long a request that was put off for hot pages waited, from the first time until it was admitted.",
        _count("hot_page_wait"),
    ),
    # tiers
    Metric(
        "tier_used_tokens",
        GAUGE,
        "Tokens that a tier holds; of the hot tier, used rows divided by the compressed heads.",
        _tier(lambda tier: tier.used),
        "tier",
    ),
    Metric(
        "tier_capacity_tokens",
        GAUGE,
        "Tokens that a tier could hold; of the hot tier, all rows divided by the compressed heads.",
        _tier(lambda tier: tier.total),
        "tier",
    ),
    Metric(
        "tier_used_bytes",
        GAUGE,
        "Bytes that the tokens of a tier take.",
        _tier(lambda tier: tier.used * tier.token_bytes),
        "tier",
    ),
    Metric("tier_capacity_bytes", GAUGE, "Bytes that a tier has allocated.", _tier(lambda tier: tier.nbytes), "tier"),
    Metric(
        "hot_pages",
        GAUGE,
        "Hot pages by what they are: used by live requests, free, parked for a next turn, or prefix where they hold "
        "rows of cached prefixes; whoever needs the last two kinds gets them.",
        lambda now: now.hot_pages,
        "state",
    ),
    Metric(
        "shared_hot_pages",
        GAUGE,
        "Hot pages that live requests share with a parked working set, once for each.",
        _level("hot_pages_shared"),
    ),
    Metric(
        "prefix_held_tokens",
        GAUGE,
        "Tokens of cached prefixes whose rows the device holds.",
        _level("prefix_tokens_held"),
    ),
    Metric(
        "prefix_rows_total",
        COUNTER,
        "Rows of cached prefixes that prefills wanted, a token and layer each: copied from the host in whole "
        "blocks, read there one by one by a kernel, or held by the device.",
        _counted(copy="prefix_rows_copied", kernel="prefix_rows_read", held="prefix_rows_held"),
        "way",
    ),
    # retrieval
    Metric(
        "drift_looks_total",
        COUNTER,
        "Looks at whether a satellite holds what its pivot attends to, by quarter of the model's layers.",
        lambda now: _quarters(now.counters.looks),
        "layers",
    ),
    Metric(
        "drift_triggers_total",
        COUNTER,
        "Looks that found too little held, so that the satellite was refilled.",
        lambda now: _quarters(now.counters.drifts),
        "layers",
    ),
    Metric(
        "drift_held_ratio",
        HISTOGRAM,
        "Looks by the share of its pivot's attention that lay on the satellite's rows.",
        lambda now: now.counters.held,
    ),
    Metric(
        "fetched_rows_total",
        COUNTER,
        "Rows of single heads that came from the host: by a kernel in the step that wanted them, or for rankings of "
        "the worker.",
        lambda now: now.ways,
        "way",
    ),
    Metric(
        "fetched_bytes_total",
        COUNTER,
        "Bytes of the rows that came from the host.",
        lambda now: {way: rows * now.row_bytes for way, rows in now.ways.items()},
        "way",
    ),
    Metric(
        "late_rows_total",
        COUNTER,
        "Rows that a step wanted and that did not come in it, because they were too many or no row was free.",
        _count("late_rows"),
    ),
    Metric(
        "reassignments_total",
        COUNTER,
        "Satellites that were given another pivot, or none that resembles them.",
        _counted(pivot="reassigned", none="orphaned"),
        "to",
    ),
    # the worker
    Metric(
        "rankings_total", COUNTER, "Anchor heads whose tokens the worker was asked to rank.", _count("anchor_refreshes")
    ),
    Metric(
        "rankings_under_way",
        GAUGE,
        "Questions that the worker has not answered yet.",
        lambda now: now.worker.get("rankings_under_way", 0),
    ),
    Metric(
        "ranking_seconds",
        HISTOGRAM,
        "How long an answer of the worker took, from the question to its arrival.",
        _count("ranking"),
    ),
    Metric(
        "failed_rankings_total",
        COUNTER,
        "Questions lost because the worker died, stalled or answered wrongly.",
        _count("failed_rankings"),
    ),
    Metric(
        "refused_rankings_total",
        COUNTER,
        "Questions not asked because the worker was down or had too much to do.",
        _count("refused_rankings"),
    ),
    Metric(
        "worker_up",
        GAUGE,
        "1 while a retrieval worker runs, 0 where it is down or none is needed.",
        lambda now: now.worker.get("worker_up", 0),
    ),
    Metric("worker_restarts_total", COUNTER, "Retrieval workers started after the first.", _count("worker_restarts")),
    # integrity
    Metric(
        "integrity_ok",
        GAUGE,
        "0 where the latest integrity check found memory lost or a stuck queue, else 1.",
        lambda now: now.state.check.verdict in FINE,
    ),
    Metric(
        "integrity_age_seconds",
        GAUGE,
        "Seconds since the latest integrity check, which runs whenever the server has become idle.",
        lambda now: time.monotonic() - now.state.check.at,
    ),
)
