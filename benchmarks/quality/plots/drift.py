"""Drift triggers over a generation."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ..store import Record


def drift(pyplot: Any, records: Sequence[Record]) -> Any:
    """Triggers over the tokens of long answers, averaged over samples of one cell and length."""
    traces: dict[str, dict[int, list[int]]] = {}
    for r in records:
        for exchange in r["exchanges"]:
            known = [at for at in exchange.get("trace") or [] if at["drift_triggers"] is not None]
            for at in known if r["ratio"] is not None else []:
                line = traces.setdefault(f"{r['policy']} at {r['ratio']:g}, {r['length']:,} tokens", {})
                line.setdefault(at["tokens"], []).append(at["drift_triggers"])
    moved = {label: line for label, line in traces.items() if any(map(any, line.values()))}
    if not moved:
        return None
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for at, (label, line) in enumerate(moved.items()):
        means = [fmean(line[tokens]) for tokens in sorted(line)]
        axes.plot(sorted(line), means, marker="os^D"[at % 4], markersize=4, alpha=0.7, label=label)
    axes.set_xlabel("generated tokens of one long answer")
    axes.set_ylabel("drift triggers since its prompt (count, all layers)")
    axes.set_title("Drift over a generation")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
