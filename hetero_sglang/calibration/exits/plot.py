"""Branches as a picture: agreement against depth, and against one threshold for all."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hetero_sglang.calibration.exits.report import table
from hetero_sglang.errors import HeteroError
from hetero_sglang.exits.exits import Exits

# Okabe-Ito: told apart without colour vision too.
_CALIBRATED, _CHECKED, _ALONE = "#0072B2", "#E69F00", "#D55E00"


def plot(exits: Exits, path: str | Path) -> None:
    """Writes a picture in the format of the path's ending, SVG the same bytes each time. Raises HeteroError for a path
    that cannot be written and for an ending that is no format."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _against_depth(exits, left)
    _against_threshold(exits, right)
    try:
        with matplotlib.rc_context({"svg.hashsalt": "hetero-sglang", "svg.fonttype": "none"}):
            figure.savefig(path, **({"metadata": {"Date": None}} if Path(path).suffix == ".svg" else {}))
    except OSError as error:
        raise HeteroError(f"the picture {path} cannot be written: {error.strerror or error}.") from None
    except ValueError:
        raise HeteroError(f"the picture {path} has an ending that is no format; choose .svg or .png.") from None


def _against_depth(exits: Exits, axes: Axes) -> None:
    rows = exits.calibration
    axes.plot([r.depth for r in rows], [r.agreement for r in rows], "o-", color=_CALIBRATED, label="calibrated")
    if checked := table("checked", exits.provenance, ("agreement", "depth"), len(rows)):
        axes.plot(
            [r["depth"] for r in checked],
            [r["agreement"] for r in checked],
            "s--",
            color=_CHECKED,
            label="on other text",
        )
    if alone := table("alone", exits.provenance, (), len(exits.branches)):
        layers = [branch.layer for branch in exits.branches]
        axes.plot(layers, alone, "x", color=_ALONE, label="every token leaves at one branch")
    axes.axvline(exits.layers, color="grey", linewidth=0.8)
    axes.set(title="agreement with full depth", xlabel="mean number of layers run", ylabel="agreement")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _against_threshold(exits: Exits, axes: Axes) -> None:
    rows = table("sweep", exits.provenance, ("threshold", "agreement", "depth"))
    thresholds = [row["threshold"] for row in rows]
    axes.plot(thresholds, [row["agreement"] for row in rows], "o-", color=_CALIBRATED, label="agreement")
    axes.plot(
        thresholds, [row["depth"] / exits.layers for row in rows], "s--", color=_CHECKED, label="share of layers run"
    )
    axes.set(
        title="one threshold for all branches", xlabel=f"threshold ({exits.confidence})", xlim=(0, 1), ylim=(0, 1.02)
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
