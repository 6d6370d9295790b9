"""The needle heat map."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import fmean
from typing import Any

from ..store import Record


def needle(pyplot: Any, records: Sequence[Record]) -> Any:
    """One panel per cell, length across and depth down, all on one colour scale."""
    if not records:
        return None
    cells = list(dict.fromkeys((r["policy"], r["ratio"]) for r in records))
    lengths = sorted({r["length"] for r in records})
    depths = sorted({r["point"]["depth"] for r in records})
    across = min(4, len(cells))
    down = -(-len(cells) // across)
    size = (1.2 + 2.6 * across, 1 + 2.4 * down)
    figure, panels = pyplot.subplots(
        down, across, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    found: dict[Any, list[float]] = {}
    for r in records:
        found.setdefault((r["policy"], r["ratio"], r["length"], r["point"]["depth"]), []).append(r["score"])
    image = None
    for axes, (policy, ratio) in zip(panels.flat, cells, strict=False):
        means = [
            [fmean(found.get((policy, ratio, length, depth)) or [float("nan")]) for length in lengths]
            for depth in depths
        ]
        image = axes.imshow(means, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for depth, length in product(range(len(depths)), range(len(lengths))):
            mean = means[depth][length]
            colour = "black" if 0.2 < mean < 0.8 else "white"
            axes.text(length, depth, f"{mean:.2g}", ha="center", va="center", fontsize=9, color=colour)
        title = policy.replace(":", "\n")  # a variant's options would run into the next panel's
        axes.set_title(title if ratio is None else f"{title}\nkeep ratio {ratio:g}", fontsize=9)
        axes.set_xticks(range(len(lengths)), [f"{length / 1024:g}K" for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        axes.grid(False)
    for axes in panels.flat[len(cells) :]:
        axes.axis("off")
    figure.supxlabel("document length (tokens)")
    figure.supylabel("depth of the entry")
    figure.suptitle("Single needle")
    figure.colorbar(image, ax=panels, label="share right")
    return figure
