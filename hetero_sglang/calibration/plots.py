"""A head profile as pictures: roles, stability, similarity, overlap over decode steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hetero_sglang.calibration.summary import LETTERS
from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.measurements import Measurements
from hetero_sglang.profile.roles import Role

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Resident roles are warm, compressed ones cool; readable without colour vision too (Okabe-Ito).
COLOURS = {Role.PIVOT: "#D55E00", Role.VOLATILE: "#E69F00", Role.SATELLITE: "#56B4E9", Role.ANCHOR: "#0072B2"}
_ORDER = list(COLOURS)


def plot_all(profile: HeadProfile, folder: str | Path, heads: Sequence[str] | None = None) -> list[Path]:
    """Writes PNGs, returns their paths. A profile without measurements gives roles only.

    Raises HeteroError without matplotlib, for an unwritable folder, and for heads not in the model."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise HeteroError("`--plot` needs matplotlib; run `pip install hetero-sglang[plot]`.") from None
    pictures = {"roles": plot_roles(profile)}
    measured = profile.measurements
    if measured is not None:
        chosen = _read_heads(profile, heads) if heads else _typical_heads(profile)
        pictures["stability"] = plot_stability(measured)
        pictures["similarity"] = plot_similarity(measured)
        pictures["overlap"] = plot_overlap(profile, measured, chosen)
    elif heads:
        raise HeteroError("this profile holds no measurements, so `--heads` has nothing to plot.")
    paths = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, figure in pictures.items():
            paths.append(Path(folder) / f"{name}.png")
            figure.savefig(paths[-1], dpi=120)
    except OSError as error:
        raise HeteroError(f"pictures cannot be written to {folder}: {error.strerror or error}.") from None
    return paths


def plot_roles(profile: HeadProfile) -> Figure:
    """Layers down, heads across, one colour and letter per role."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    codes = np.array([[_ORDER.index(role) for role in layer.roles] for layer in profile.layers])
    figure, axes = _table_figure(*codes.shape)
    axes.imshow(codes, cmap=ListedColormap(list(COLOURS.values())), vmin=-0.5, vmax=3.5, aspect="auto")
    for layer, roles in enumerate(profile.layers):
        for head, role in enumerate(roles.roles):
            axes.text(head, layer, LETTERS[role], ha="center", va="center", fontsize=8)
    for layer in range(1, profile.num_layers):
        axes.axhline(layer - 0.5, color="white", linewidth=1)
    for head in range(1, profile.num_kv_heads):
        axes.axvline(head - 0.5, color="white", linewidth=1)
    _label(axes, f"roles: {profile.num_resident} of {profile.num_heads} heads resident")
    kinds = [Patch(color=c, label=f"{role.value} ({'resident' if role.resident else 'compressed'})")
             for role, c in COLOURS.items()]  # fmt: skip
    axes.legend(handles=kinds, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return figure


def plot_stability(measured: Measurements) -> Figure:
    """Stability of every head and, where there is room, its standard deviation over documents."""
    layers, heads = measured.stability.shape
    roomy = heads <= 16
    figure, axes = _table_figure(layers, heads, cell=0.85 if roomy else 0.42)
    image = axes.imshow(measured.stability, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (layer, head), value in np.ndenumerate(measured.stability):
        spread = f" ±{measured.stability_spread[layer, head]:.2f}" if roomy else ""
        colour = "black" if value > 0.6 else "white"
        axes.text(head, layer, f"{value:.2f}{spread}", ha="center", va="center", fontsize=7, color=colour)
    _label(axes, "stability: overlap of decode steps with the prefill top-k")
    figure.colorbar(image, ax=axes, label="overlap")
    return figure


def plot_similarity(measured: Measurements) -> Figure:
    """One heads-by-heads map per layer."""
    figure_type = _figure_type()
    layers = len(measured.similarity)
    columns = 4 if layers <= 8 else 8
    rows = -(-layers // columns)
    figure = figure_type(figsize=(1.9 * columns + 1.2, 2.1 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    image = None
    for layer, (axes, table) in enumerate(zip(grid.flat, measured.similarity, strict=False)):
        axes.set_axis_on()
        image = axes.imshow(table, cmap="viridis", vmin=0, vmax=1)
        axes.set_title(f"layer {layer}", fontsize=9)
        ticks = range(0, len(table), max(1, len(table) // 4))
        axes.set_xticks(ticks, labels=map(str, ticks), fontsize=7)
        axes.set_yticks(ticks, labels=map(str, ticks), fontsize=7)
    figure.suptitle("similarity: overlap of two heads' top-k in one layer (axes: KV heads)")
    figure.colorbar(image, ax=grid, label="overlap", shrink=0.8)
    return figure


def plot_overlap(profile: HeadProfile, measured: Measurements, heads: Sequence[tuple[int, int]]) -> Figure:
    """Overlap with the prefill top-k over decode steps, mean over documents."""
    figure = _figure_type()(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots()
    styles = ("-", "--", ":", "-.")
    used: dict[Role, int] = dict.fromkeys(Role, 0)
    for layer, head in heads:
        role = profile.layers[layer].roles[head]
        curve = measured.overlap[layer, head]
        axes.plot(range(1, len(curve) + 1), curve, color=COLOURS[role], linestyle=styles[used[role] % 4],
                  label=f"layer {layer} head {head}, {role.value}")  # fmt: skip
        used[role] += 1
    axes.set(
        title="how long a head keeps to its prefill top-k",
        xlabel="decode step",
        ylabel="overlap with the prefill top-k",
        ylim=(0, 1),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)
    return figure


def _typical_heads(profile: HeadProfile) -> list[tuple[int, int]]:
    """Two of each role, from the first and the last layer that has one."""
    found = []
    for role in _ORDER:
        of_role = [(i, h) for i, layer in enumerate(profile.layers) for h, r in enumerate(layer.roles) if r is role]
        found += sorted({of_role[0], of_role[-1]}) if of_role else []
    return found


def _read_heads(profile: HeadProfile, heads: Sequence[str]) -> list[tuple[int, int]]:
    pairs = []
    for name in heads:
        layer, dot, head = name.partition(".")
        inside = dot and layer.isdecimal() and head.isdecimal()
        if not inside or int(layer) >= profile.num_layers or int(head) >= profile.num_kv_heads:
            raise HeteroError(
                f"`--heads {name}` is no head of this model; write LAYER.HEAD with layers 0 to "
                f"{profile.num_layers - 1} and heads 0 to {profile.num_kv_heads - 1}."
            )
        pairs.append((int(layer), int(head)))
    return pairs


def _table_figure(layers: int, heads: int, cell: float = 0.42) -> tuple[Figure, Axes]:
    figure = _figure_type()(figsize=(max(4.0, cell * heads) + 3.0, max(3.0, 0.24 * layers) + 1.0), layout="constrained")
    return figure, figure.subplots()


def _label(axes: Axes, title: str) -> None:
    axes.set(title=title, xlabel="KV head", ylabel="layer")
    axes.locator_params(integer=True)


def _figure_type() -> type[Figure]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class AggFigure(Figure):
        """Drawn without a display or pyplot's global state."""

        def __init__(self, **kwargs) -> None:  # noqa: ANN003
            super().__init__(**kwargs)
            FigureCanvasAgg(self)

    return AggFigure
