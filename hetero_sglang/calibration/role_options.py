"""The options that decide roles from measurements, shared by calibration and `assign`."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.clusters import heads_per_rank
from hetero_sglang.profile.head_profile import LayerRoles
from hetero_sglang.profile.measurements import Measurements
from hetero_sglang.profile.ratio import Choice, choices, choose, topk_share
from hetero_sglang.profile.thresholds import Thresholds, classify

_ROWS = 12


@dataclass(frozen=True)
class RoleOptions:
    """Fixed thresholds, or the keep ratio they are to be chosen for; `ranks` groups heads for clustering."""

    thresholds: Thresholds
    target: float | None
    ranks: int | None

    def decide(
        self, measured: Measurements, about: Mapping[str, Any]
    ) -> tuple[tuple[LayerRoles, ...], dict[str, Any], str]:
        """The layers, `about` with how they were decided, and a table of what keep ratios are possible at what loss.

        `about` is the provenance of the measurement. Raises HeteroError where no thresholds allow the target."""
        per_rank = heads_per_rank(measured.stability.shape[1], self.ranks)
        options = choices(measured, topk_share(about), per_rank)
        taken = None if self.target is None else choose(options, self.target)
        thresholds = taken.thresholds if taken else self.thresholds
        decided = {
            "tau_stable": thresholds.stable,
            "tau_sim": thresholds.similar,
            "target_keep_ratio": self.target,
            "per_rank": self.ranks,
        }
        return classify(measured, thresholds, per_rank), {**about, **decided}, frontier_table(options, taken)


def add_role_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options; read them back with `read_role_options`."""
    add = parser.add_argument
    add("--tau-stable", type=float, help="stability from which a lone head is an anchor (default 0.5)")
    add("--tau-sim", type=float, help="similarity from which heads are neighbours (default 0.5)")
    add("--target-keep-ratio", type=float, metavar="R",
        help="choose both thresholds: the least loss in overlap that allows R")  # fmt: skip
    add("--per-rank", type=int, metavar="N", help="cluster inside the heads of each of N tensor-parallel ranks")


def read_role_options(args: argparse.Namespace, num_kv_heads: int) -> RoleOptions:
    """Raises HeteroError for values out of range and for a target beside fixed thresholds."""
    target, fixed = args.target_keep_ratio, (args.tau_stable, args.tau_sim)
    if target is not None and fixed != (None, None):
        raise HeteroError(
            "`--target-keep-ratio` chooses the thresholds itself; leave `--tau-stable` and `--tau-sim` out."
        )
    if target is not None and not 0.0 < target < 1.0:
        raise HeteroError(f"`--target-keep-ratio` is {target:g}; choose a share between 0 and 1, both excluded.")
    heads_per_rank(num_kv_heads, args.per_rank)
    stable, similar = (0.5 if value is None else value for value in fixed)
    return RoleOptions(Thresholds(stable, similar), target, args.per_rank)


def frontier(options: list[Choice]) -> list[Choice]:
    """The choices that no other beats in both resident heads and loss, fewest resident heads first.

    `options` must be sorted as `choices` sorts them."""
    best: list[Choice] = []
    for option in options:
        if not best or option.loss < best[-1].loss:
            best.append(option)
    return best


def frontier_table(options: list[Choice], taken: Choice | None = None) -> str:
    """At most about a dozen lines of the frontier, the taken choice among them and marked."""
    best = frontier(options)
    step = -(-len(best) // _ROWS)
    rows = [c for i, c in enumerate(best) if i % step == 0 or c == best[-1] or c == taken]
    lines = ["keep ratio from   floor   loss in overlap   tau-stable   tau-sim"]
    for c in rows:
        lines.append(
            f"{c.least_keep_ratio:15.3f}   {c.floor:5.3f}   {c.loss:15.3f}   {c.thresholds.stable:10.2f}   "
            f"{c.thresholds.similar:7.2f}{'   <- taken' if c == taken else ''}"
        )
    return "\n".join(lines)
