"""What the cache counts. Plain integers, owned by the scheduler's thread, read by /hetero/stats and Prometheus."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hetero_sglang.cache.durations import Durations
from hetero_sglang.cache.shares import Shares


@dataclass
class Counters:
    """Totals since start."""

    requests: int = 0  # working sets begun
    resumed_requests: int = 0  # of these, those that went on with the rows of one that had ended
    shared_requests: int = 0  # of these, those that others went on with too: pages are shared until there are free ones
    restored_requests: int = 0  # those whose first new tokens chose rows of a cached prefix by its key index
    appended_tokens: int = 0  # new tokens of prompts that attended to working sets, not to the whole prefix
    prefilled_tokens: int = 0  # that passes of prompts have gone through
    decoded_tokens: int = 0  # a decode step's, one for each of its requests, and draft tokens that have stayed
    draft_tokens: int = 0  # that verifications have looked at
    accepted_tokens: int = 0  # of these, those that have stayed
    compressed_requests: int = 0  # of the requests, those longer than a working set at prefill end
    kept_bytes: int = 0  # device bytes these hold, indexes included, and
    dense_bytes: int = 0  # what plain SGLang would hold for them
    drift_checks: int = 0  # satellites' rows compared with what their pivot looks at
    drift_triggers: int = 0  # satellites whose pivot looked beyond them
    reassigned: int = 0  # heads that were given another pivot
    orphaned: int = 0  # satellites that no pivot resembles any more
    anchor_refreshes: int = 0  # anchors whose tokens the worker was asked to rank
    failed_rankings: int = 0  # the worker died, stalled or answered nonsense
    refused_rankings: int = 0  # the worker is down, or has too much to do
    fetched_rows: int = 0  # rows that came in the step that wanted them
    fetched_bytes: int = 0
    worker_rows: int = 0  # of these, those that came for rankings of the worker
    late_rows: int = 0  # rows a step wanted that did not come in it: beyond the bound, or no row was free
    prefix_rows_copied: int = 0  # of cached prefixes, a token and layer each: in whole blocks
    prefix_rows_read: int = 0  # and one by one, where slots lie scattered
    prefix_rows_held: int = 0  # and those that the device still had
    refused_growth: int = 0  # a long generation found the hot pool full and began to compress
    waiting_for_hot_pages: int = 0  # admission attempts put off because the hot pool was full
    waiting_for_token_slots: int = 0  # because SGLang's token slots were
    waiting_for_prefill: int = 0  # because the pass had enough tokens or requests
    refused_requests: int = 0  # that could not become requests of the queue
    worker_restarts: int = 0
    looks: Sequence[int] = ()  # `drift_checks` by group of layers
    drifts: Sequence[int] = ()  # and `drift_triggers`
    held: Shares = field(default_factory=Shares)  # of `drift_checks`, what share of its pivot's attention was held
    ranking: Durations = field(default_factory=Durations)  # of the worker's rankings, from question to answer
    hot_page_wait: Durations = field(default_factory=Durations)  # of requests that were put off for hot pages

    def as_dict(self) -> dict[str, int]:
        """What is counted, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}
