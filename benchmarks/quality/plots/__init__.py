"""Plots: accuracy against kept bytes, the needle heat map, drift over a generation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetero_sglang.errors import HeteroError

from ..store import Record
from .accuracy import accuracy
from .drift import drift
from .needle import needle

_LOOK = {"font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "figure.dpi": 150, "savefig.bbox": "tight"}


def load_pyplot() -> Any:
    """Matplotlib without a screen. Raises HeteroError if it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise HeteroError("Plots need matplotlib: install the extra 'plot', or pass --no-plots.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(result: dict[str, Any], records: Sequence[Record], folder: Path) -> list[Path]:
    """Write the plots that there is data for; their paths."""
    pyplot = load_pyplot()
    with pyplot.rc_context(_LOOK):
        drawn = {
            "accuracy.png": accuracy(pyplot, result["cells"]),
            "needle.png": needle(pyplot, [r for r in records if r["task"] == "needle"]),
            "drift.png": drift(pyplot, records),
        }
        return [_save(pyplot, figure, folder / name) for name, figure in drawn.items() if figure]


def _save(pyplot: Any, figure: Any, path: Path) -> Path:
    scratch = path.with_name(f".{path.name}")
    figure.savefig(scratch, format="png")
    scratch.replace(path)
    pyplot.close(figure)
    return path
