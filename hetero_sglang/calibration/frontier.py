"""What keep ratios a model's heads allow, and what each costs."""

from __future__ import annotations

from hetero_sglang.profile.ratio import Choice

_ROWS = 12


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
