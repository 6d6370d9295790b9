"""Accuracy against kept bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def accuracy(pyplot: Any, cells: Sequence[dict[str, Any]]) -> Any:
    """One line per policy over its keep ratios, measured where the server counts bytes."""
    if not cells:
        return None
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    measured = all(cell["measured_ratio"] is not None for cell in cells if cell["ratio"] is not None)
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for cell in cells:
        if cell["ratio"] is None:
            axes.axhline(cell["score"], color="black", linestyle="--", linewidth=1, label="full (ratio 1)")
        else:
            ratio = cell["measured_ratio"] if measured else cell["ratio"]
            lines.setdefault(cell["policy"], []).append((ratio, cell["score"], cell["deviation"] or 0))
    for at, (policy, points) in enumerate(lines.items()):
        x, y, error = zip(*sorted(points), strict=True)
        axes.errorbar(x, y, error, marker="osD^vP*Xp"[at % 9], capsize=2, label=policy)
    axes.set_xlabel(f"device KV bytes kept ({'measured' if measured else 'keep ratio'}, fraction of dense)")
    spread = any(error for points in lines.values() for *_, error in points)
    axes.set_ylabel("share right, mean over tasks" + (" ± deviation between seeds" if spread else ""))
    axes.set_title("Accuracy against kept bytes")
    axes.set_xlim(0, 1)
    scores = [cell["score"] for cell in cells]
    axes.set_ylim(max(-0.02, min(scores) - 0.05), min(1.02, max(scores) + 0.05))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
