"""The picture of a run: success against the latency of an action."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetero_sglang.errors import HeteroError


def draw(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """A panel for each kind of worlds; a point's area is its weights and KV. Raises HeteroError without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise HeteroError("The picture needs matplotlib: pip install matplotlib, or pass --no-picture.") from None
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "navigation", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    measured = [each for each in rows if "success" in each]
    kinds = list(dict.fromkeys(each["worlds"] for each in measured))
    figure, panels = pyplot.subplots(1, max(1, len(kinds)), figsize=(6.4 * max(1, len(kinds)), 4.4), squeeze=False)
    most = max((each["weight_bytes"] + each["kv_bytes"] for each in measured), default=1)
    colors = matplotlib.colormaps["tab20"]
    for axes, kind in zip(panels[0], kinds, strict=False):
        mine = [each for each in measured if each["worlds"] == kind]
        static = sorted((each for each in mine if "exit at layer" in each["name"]), key=lambda each: each["mean_ms"])
        axes.plot([each["mean_ms"] for each in static], [each["success"] for each in static], color="0.6", zorder=1)
        for number, each in enumerate(mine):
            area = 30 + 220 * (each["weight_bytes"] + each["kv_bytes"]) / most
            point = (each["mean_ms"], each["success"])
            axes.scatter(*point, s=area, color=colors(number % 20), alpha=0.8, zorder=2, label=each["name"])
        axes.set(xlabel="latency of an action, mean (ms)", ylabel="success", title=f"{kind} worlds", ylim=(-0.03, 1.05))
        axes.set_xlim(0, 1.08 * max(each["mean_ms"] for each in mine))
        axes.legend(fontsize=7, markerscale=0.5, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)
    return path
