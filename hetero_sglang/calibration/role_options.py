"""The options that decide roles from measurements, shared by calibration and `assign`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from hetero_sglang.calibration.frontier import frontier_table
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.clusters import heads_per_rank
from hetero_sglang.profile.measurements import Measurements
from hetero_sglang.profile.ratio import Choice, choices, choose
from hetero_sglang.profile.thresholds import Thresholds


@dataclass(frozen=True)
class RoleOptions:
    """Fixed thresholds, or the keep ratio they are to be chosen for; `ranks` groups heads for clustering."""

    thresholds: Thresholds
    target: float | None
    ranks: int | None

    def decide(self, measured: Measurements, topk_share: float) -> tuple[Thresholds, str]:
        """The thresholds to use, and a table of what keep ratios are possible at what loss.

        `topk_share` is the share of tokens in the measured sets."""
        options = choices(measured, topk_share, heads_per_rank(measured.stability.shape[1], self.ranks))
        taken: Choice | None = None
        if self.target is not None:
            taken = choose(options, self.target)
        return taken.thresholds if taken else self.thresholds, frontier_table(options, taken)


def add_role_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options; read them back with `read_role_options`."""
    add = parser.add_argument
    add("--tau-stable", type=float, help="stability from which a lone head is an anchor (default 0.5)")
    add("--tau-sim", type=float, help="similarity from which heads are neighbours (default 0.5)")
    add("--target-keep-ratio", type=float, metavar="R",
        help="choose both thresholds: the least loss in overlap that allows R")  # fmt: skip
    add(
        "--per-rank",
        type=int,
        metavar="N",
        help="cluster inside the heads of each of N tensor-parallel ranks",
    )


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
