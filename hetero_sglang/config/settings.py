"""All start-up choices, resolved and validated once into a record that is frozen but for its tuning."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from hetero_sglang.config.caps import ROOMY, CapRule, length_for
from hetero_sglang.config.description import Description, Refresh
from hetero_sglang.config.layout import HeadLayout, adapter_fractions, build_layout
from hetero_sglang.config.tuning import Tuning
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.budget import cap_fractions
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.index_plan import IndexPlan

HOT_PAGE = 16  # rows of a hot page
APPEND = {"exact": 0, "auto": 512, "sparse": 1 << 31}  # new tokens that may attend to a working set


@dataclass(frozen=True)
class Settings:
    """What the two-tier cache of one rank needs to know, apart from sizes in bytes."""

    policy: Description
    layout: HeadLayout
    ranks: tuple[HeadLayout, ...]  # every rank's, `layout` among them
    rank: int
    rule: CapRule
    keep_ratio: float
    floor: float
    observe: int  # queries that choose the rows at prefill end
    tuning: Tuning  # what may change afterwards
    anchor_interval: int  # looks between two refreshes of an anchor; 0 never
    retrieval: str  # accumulate | replace | off
    reassign: bool  # satellites that no longer follow their pivot get another, or none
    worker_threads: int
    decode_kernel: str  # auto | flashinfer | triton
    index: IndexPlan | None  # of this rank's heads; None: no head finds its rows itself
    index_bytes: tuple[int, ...]  # of a token on each rank's device
    adapters: tuple[tuple[tuple[float, ...], ...], ...] = ()  # fractions of adapters' requests, by adapter and rank
    restores: bool = False  # whether a working set may be made of a cached prefix's key index
    drafts: int = 0  # tokens that may be taken back, of all requests of a pass at most
    append: int = 0  # new tokens of a turn that may attend to the working set of the one before, at most
    decay: float = 0.9  # of a row's score, per look
    refill_rows: int = 1024  # tokens that come to a head at one refill, at most: the best
    most_swaps: int = 2048  # runs that come to a head in one step, at most

    @property
    def drift_threshold(self) -> float:
        """Of now."""
        return self.tuning.drift_threshold

    @property
    def monitor_interval(self) -> int:
        """Of now."""
        return self.tuning.monitor_interval

    @property
    def runs(self) -> list[int]:
        """Of each layer: neighbouring tokens that come and go together."""
        return [1] * len(self.layout.layers) if self.index is None else self.index.run.tolist()

    @property
    def retrieves(self) -> bool:
        """Whether heads were to find rows while requests decode, at start, and not by a key index.

        There is nothing to find without drift, nor where every head keeps everything."""
        changes = self.policy.refresh is Refresh.STEP
        changes = changes or (self.policy.refresh is Refresh.DRIFT and self.drift_threshold > 0)
        return changes and self.retrieval != "off" and any(f < 1 for f in self.layout.fractions)


def resolve(
    profile: HeadProfile,
    *,
    adapters: Mapping[str, HeadProfile] | None = None,
    policy: Description,
    keep_ratio: float,
    window: int,
    sink: int,
    dense_below: int | None,
    drift_threshold: float,
    monitor_interval: int,
    observe: int = 32,
    anchor_interval: int = 8,
    retrieval: str = "accumulate",
    reassign: bool = False,
    reserve: int = 4096,
    decode_kernel: str = "auto",
    append: str = "auto",
    drafts: int = 0,
    itemsize: int = 2,
    rank: int = 0,
    size: int = 1,
) -> Settings:
    """Validate the options against the profile. `adapters`: the same heads with other shares of rows, for requests of
    adapters that have a profile of their own, by these's names; `itemsize`: bytes of a number of K or V as the stores
    hold it; `drafts`: as of Settings. Raises HeteroError with the legal recipe."""
    lazy = policy.refresh is Refresh.LAZY and keep_ratio < 1
    plan = profile.index if lazy else None
    if lazy and plan is None:
        raise HeteroError("this head profile has no key index; make one with `hetero-sglang profile`.")
    run, share = (plan.longest, profile_share(profile, itemsize)) if plan else (1, 0.0)
    sink = -(-sink // run) * run  # whole runs come and go
    if run > 1 and decode_kernel == "flashinfer":
        raise HeteroError(
            f"--hetero-decode-kernel flashinfer cannot leave out rows, which runs of {run} rows want; drop it, or make "
            f"an index with `hetero-sglang profile index --index-run 1`."
        )
    if not 0 < keep_ratio <= 1 or (keep_ratio < 1 and keep_ratio - share <= profile.floor):
        least, why = profile.floor + share, f"the key index takes {share:.4f} of the KV bytes"
        if not share:
            why = f"{profile.num_resident} of {profile.num_heads} KV heads are resident by this profile"
        raise HeteroError(
            f"--hetero-keep-ratio {keep_ratio} is not in ({least:.3f}, 1]: {why}; choose a ratio above {least:.3f}."
        )
    if policy.index and (keep_ratio <= policy.index_share or window < policy.index.span):
        raise HeteroError(
            f"{policy.name} keeps an index of {policy.index_share:.4f} of the KV bytes, over units of "
            f"{policy.index.span} tokens: --hetero-keep-ratio {keep_ratio} must be above the first and --hetero-window "
            f"{window} at least the second."
        )
    if reassign and policy.refresh is not Refresh.DRIFT:
        raise HeteroError(f"--hetero-reassign moves satellites between pivots, and {policy.name} has none; drop it.")
    if reassign and (retrieval == "off" or not drift_threshold):
        raise HeteroError("--hetero-reassign watches pivots, and with retrieval off none looks; drop one of them.")
    positive = {"window": window, "sink": sink, "monitor-interval": monitor_interval, "observe": observe}
    for name, value in positive.items():
        if value < 1:
            raise HeteroError(f"--hetero-{name} {value} must be at least 1.")
    if not 0 <= drift_threshold <= 1:
        raise HeteroError(f"--hetero-drift-threshold {drift_threshold} is not in [0, 1]; 0 switches retrieval off.")
    rows_ratio = keep_ratio - share
    ranks = tuple(build_layout(profile, rows_ratio, other, size) for other in range(size))
    adapters = adapters or {}
    shared = tuple(adapter_fractions(each, ranks) for each in adapters.values())
    fractions = [f for layer in cap_fractions(profile, rows_ratio) for f in layer]
    rows, *others = (
        tuple(f - policy.index_share if f < 1 else f for f in every) for every in (fractions, *chain(*shared))
    )
    always = sink + window + run - 1  # rows that a head holds whatever it chooses
    owners = ("", *(f" of adapter {name}" for name in adapters for _ in ranks))  # the model's before all others
    poorest, whose = min((min(own, default=1.0), owner) for own, owner in zip((rows, *others), owners, strict=True))
    if dense_below is None:
        # A pivot's heads must be roomy to be refilled; of heads with an index the poorest need little.
        roomy = fmean(rows) if plan and rows else poorest
        dense_below = max(length_for(ROOMY * always, roomy), length_for(always + run, poorest))
    layout = ranks[rank]
    own = tuple(each[rank] for each in shared)
    rule = CapRule(policy, layout.fractions, HOT_PAGE, sink, window, dense_below, reserve, run, own)
    least_rows = sink + rule.ring_rows + run
    if poorest * dense_below < least_rows and poorest < 1:
        needed, runs = int(least_rows / poorest) + 1, f", {least_rows} rows with runs of {run}," if run > 1 else ""
        raise HeteroError(
            f"--hetero-sink {sink} + --hetero-window {window}{runs} do not fit the smallest cap{whose}, "
            f"{int(poorest * dense_below)} rows for a prompt of --hetero-dense-below {dense_below} tokens; "
            f"lower them or set --hetero-dense-below to at least {needed}."
        )
    settings = Settings(
        policy=policy,
        layout=layout,
        ranks=ranks,
        rank=rank,
        rule=rule,
        keep_ratio=keep_ratio,
        floor=profile.floor,
        observe=observe,
        tuning=Tuning(drift_threshold, monitor_interval),
        anchor_interval=anchor_interval,
        retrieval=retrieval,
        reassign=reassign,
        worker_threads=min(8, max(2, len(os.sched_getaffinity(0)) // (4 * size))),
        decode_kernel=decode_kernel,
        index=profile.slice(rank, size).index if plan else None,
        restores=plan is not None and append == "sparse",
        append=APPEND[append],
        adapters=shared,
        drafts=drafts,
        index_bytes=tuple(bytes_of_index(profile.slice(other, size)) if plan else 0 for other in range(size)),
    )
    settings.tuning.retrieval = settings.retrieves or plan is not None
    return settings


def profile_share(profile: HeadProfile, itemsize: int = 2) -> float:
    """The key index's bytes as a fraction of all heads' K and V, of `itemsize` bytes a number."""
    assert profile.head_dim is not None
    return bytes_of_index(profile) / (2 * itemsize * profile.head_dim) / profile.num_heads


def bytes_of_index(profile: HeadProfile) -> int:
    """Of a token: an index row for each compressed head that finds rows by it."""
    assert profile.index is not None
    heads = sum(profile.index.probed[n, list(layer.compressed)].sum() for n, layer in enumerate(profile.layers))
    return int(heads) * profile.index.row_bytes
