"""All start-up choices, resolved and validated once into a frozen record."""

from __future__ import annotations

from dataclasses import dataclass

from hetero_sglang.errors import HeteroError
from hetero_sglang.memory.budget import CapRule, default_dense_below
from hetero_sglang.memory.layout import HeadLayout, build_layout
from hetero_sglang.profile.budget import cap_fractions
from hetero_sglang.profile.head_profile import HeadProfile

HOT_PAGE = 16  # rows of a hot page


@dataclass(frozen=True)
class Settings:
    """What the two-tier cache of one rank needs to know, apart from sizes in bytes."""

    layout: HeadLayout
    rule: CapRule
    keep_ratio: float
    floor: float
    observe: int  # queries that choose the rows at prefill end
    drift_threshold: float
    monitor_interval: int  # decode steps between two looks of a pivot
    anchor_interval: int  # looks between two refreshes of an anchor; 0 never
    retrieval: str  # accumulate | replace | off
    decay: float  # of a row's score, per look
    over_queries: str  # how the observed queries' scores are reduced: max | mean
    history: int  # looks whose median overlap decides
    staging_mb: int
    worker_threads: int

    @property
    def retrieves(self) -> bool:
        """Whether anything is ever fetched: a threshold of 0 switches retrieval off."""
        return self.retrieval != "off" and self.drift_threshold > 0 and any(f < 1 for f in self.layout.fractions)


def resolve(
    profile: HeadProfile,
    *,
    keep_ratio: float,
    window: int,
    sink: int,
    dense_below: int | None,
    drift_threshold: float,
    monitor_interval: int,
    observe: int = 32,
    anchor_interval: int = 8,
    retrieval: str = "accumulate",
    reserve: int = 4096,
    rank: int = 0,
    size: int = 1,
) -> Settings:
    """Validate the options against the profile. Raises HeteroError with the legal recipe."""
    if not 0 < keep_ratio <= 1 or (keep_ratio < 1 and keep_ratio <= profile.floor):
        raise HeteroError(
            f"--hetero-keep-ratio {keep_ratio} is not in ({profile.floor:.3f}, 1]: {profile.num_resident} of "
            f"{profile.num_heads} KV heads are resident by this profile; choose a ratio above {profile.floor:.3f}."
        )
    _positive(window=window, sink=sink, monitor_interval=monitor_interval, observe=observe)
    if not 0 <= drift_threshold <= 1:
        raise HeteroError(f"--hetero-drift-threshold {drift_threshold} is not in [0, 1]; 0 switches retrieval off.")
    fractions = [f for layer in cap_fractions(profile, keep_ratio) for f in layer]
    if dense_below is None:
        dense_below = default_dense_below(tuple(fractions), sink, window)
    layout = build_layout(profile, keep_ratio, rank, size)
    rule = CapRule(layout, HOT_PAGE, sink, window, dense_below, reserve)
    poorest = min((f for f in fractions), default=1.0)
    if poorest * dense_below < sink + window + 1 and poorest < 1:
        needed = int((sink + window + 1) / poorest) + 1
        raise HeteroError(
            f"--hetero-sink {sink} + --hetero-window {window} do not fit the smallest cap, "
            f"{int(poorest * dense_below)} rows for a prompt of --hetero-dense-below {dense_below} tokens; "
            f"lower them or set --hetero-dense-below to at least {needed}."
        )
    return Settings(
        layout=layout,
        rule=rule,
        keep_ratio=keep_ratio,
        floor=profile.floor,
        observe=observe,
        drift_threshold=drift_threshold,
        monitor_interval=monitor_interval,
        anchor_interval=anchor_interval,
        retrieval=retrieval,
        decay=0.9,
        over_queries="max",
        history=3,
        staging_mb=64,
        worker_threads=2,
    )


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise HeteroError(f"--hetero-{name.replace('_', '-')} {value} must be at least 1.")
