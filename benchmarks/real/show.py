"""A table and a plot of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arithmetic import ALL

Row = dict[str, Any]
_SMALL = 0.01  # nats; below it a plot's scale is linear, above logarithmic
_HEADER = (
    "policy",
    "kind",
    "texts",
    "NLL",
    "- full",
    "KL",
    "same first",
    "right",
    "whole",
    "rows fetched",
    "kept",
    "seconds",
)


def table(rows: Sequence[Row]) -> str:
    """In Markdown; NLL and KL in nats per token, rows fetched per token and KV head; of full's right
    choices as many were right, and so of its answers that were right throughout."""
    lines = [_HEADER, ["---"] * len(_HEADER), *map(_line, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(pyplot: Any, rows: Sequence[Row], path: Path) -> Path:
    """Difference in NLL and KL by setting, a mark per kind."""
    labels = list(dict.fromkeys(row["policy"] for row in rows if row["policy"] != "full"))
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure, panels = pyplot.subplots(1, 2, figsize=(12, 1.8 + 0.55 * len(labels)), sharey=True, layout="constrained")
    for at, kind in enumerate(kinds):
        ours = [row for row in rows if row["kind"] == kind and row["policy"] in labels]
        # side by side, so that marks of one setting do not hide each other
        y = [labels.index(row["policy"]) + 0.5 * ((at + 0.5) / len(kinds) - 0.5) for row in ours]
        look = {"fmt": "osD^vP"[at % 6], "markersize": 7 if kind == ALL else 5, "label": kind, "capsize": 2}
        look |= {"color": "black"} if kind == ALL else {}
        panels[0].errorbar(
            [row["nll_difference"] for row in ours], y, xerr=[row["nll_difference_error"] or 0 for row in ours], **look
        )
        panels[1].errorbar([row["kl"] for row in ours], y, **look)
    panels[0].axvline(0, color="black", linewidth=1, linestyle="--")
    panels[0].set_yticks(range(len(labels)), [label.replace(":", ":\n", 1).replace(" --", "\n--") for label in labels])
    panels[0].invert_yaxis()
    panels[0].set_xscale("symlog", linthresh=_SMALL)
    panels[0].set_xlabel("NLL - full (nats per token)")
    panels[1].set_xscale("symlog", linthresh=_SMALL)
    panels[1].set_xlabel("KL(full || policy) (nats per token)")
    panels[1].set_xlim(left=0)
    for axes in panels:
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.suptitle("Real texts, continued token by token")
    scratch = path.with_name(f".{path.name}")
    figure.savefig(scratch, format="png", dpi=150)
    scratch.replace(path)
    pyplot.close(figure)
    return path


def _line(row: Row) -> list[str]:
    error = row["nll_difference_error"]
    return [
        row["policy"],
        row["kind"],
        str(row["texts"]),
        f"{row['nll']:.4f}",
        f"{row['nll_difference']:+.4f}" + ("" if error is None else f" ± {error:.4f}"),
        f"{row['kl']:.5f}",
        f"{100 * row['same_first']:.1f}%",
        f"{row['right']} of {row['right_full']}",
        f"{row['whole']} of {row['whole_full']}",
        "" if row["rows_per_token_and_head"] is None else f"{row['rows_per_token_and_head']:.2f}",
        "" if row["measured_ratio"] is None else f"{row['measured_ratio']:.4f}",
        f"{row['seconds']:.0f}",
    ]
