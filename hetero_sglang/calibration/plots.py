"""A head profile as pictures: roles, stability, similarity, overlap over decode steps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.measurements import Measurements
from hetero_sglang.profile.roles import Role

# Resident roles are warm, compressed ones cool; readable without colour vision too (Okabe-Ito).
COLOURS = {Role.PIVOT: "#D55E00", Role.VOLATILE: "#E69F00", Role.SATELLITE: "#56B4E9", Role.ANCHOR: "#0072B2"}
_ORDER = list(COLOURS)


def plot_all(profile: HeadProfile, folder: str | Path, heads: Sequence[str] | None = None) -> list[Path]:
    """Writes PNGs, returns their paths. A profile without measurements gives roles only.

    Raises HeteroError for an unwritable folder, and for heads not in the model."""
    pictures = {"roles": plot_roles(profile)}
    measured = profile.measurements
    if measured is not None:
        chosen = _read_heads(profile, heads) if heads else _typical_heads(profile)
        pictures["stability"] = plot_stability(measured)
        pictures["similarity"] = plot_similarity(measured)
        pictures["overlap"] = plot_overlap(profile, measured, chosen)
    elif heads:
        raise HeteroError("this profile holds no measurements, so `--heads` has nothing to plot.")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, figure in pictures.items():
            figure.savefig(Path(folder) / f"{name}.png", dpi=120)
    except OSError as error:
        raise HeteroError(f"pictures cannot be written to {folder}: {error.strerror or error}.") from None
    return [Path(folder) / f"{name}.png" for name in pictures]


def plot_roles(profile: HeadProfile) -> Figure:
    """Layers down, heads across, one colour and letter per role."""
    codes = np.array([[_ORDER.index(role) for role in layer.roles] for layer in profile.layers])
    title = f"roles: {profile.num_resident} of {profile.num_heads} heads resident"
    figure, axes = _table_figure(profile.num_layers, profile.num_kv_heads, title)
    axes.imshow(codes, cmap=ListedColormap(list(COLOURS.values())), vmin=-0.5, vmax=3.5, aspect="auto")
    for (layer, head), code in np.ndenumerate(codes):
        axes.text(head, layer, _ORDER[code].letter, ha="center", va="center", fontsize=8)
    for layer in range(1, profile.num_layers):
        axes.axhline(layer - 0.5, color="white", linewidth=1)
    for head in range(1, profile.num_kv_heads):
        axes.axvline(head - 0.5, color="white", linewidth=1)
    kinds = [Patch(color=c, label=f"{role} ({'resident' if role.resident else 'compressed'})")
             for role, c in COLOURS.items()]  # fmt: skip
    axes.legend(handles=kinds, loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return figure


def plot_stability(measured: Measurements) -> Figure:
    """Stability of every head and, where there is room, its standard deviation over documents."""
    layers, heads = measured.stability.shape
    roomy = heads <= 16
    title = "stability: overlap of decode steps with the prefill top-k"
    figure, axes = _table_figure(layers, heads, title, cell=0.85 if roomy else 0.42)
    image = axes.imshow(measured.stability, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (layer, head), value in np.ndenumerate(measured.stability):
        spread = f" ±{measured.stability_spread[layer, head]:.2f}" if roomy else ""
        colour = "black" if value > 0.6 else "white"
        axes.text(head, layer, f"{value:.2f}{spread}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, label="overlap")
    return figure


def plot_similarity(measured: Measurements) -> Figure:
    """One heads-by-heads map per layer."""
    layers = len(measured.similarity)
    columns = 4 if layers <= 8 else 8
    rows = -(-layers // columns)
    figure = Figure(figsize=(1.9 * columns + 1.2, 2.1 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[layers:]:
        axes.set_axis_off()
    for layer, (axes, table) in enumerate(zip(grid.flat, measured.similarity, strict=False)):
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
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots()
    styles = ("-", "--", ":", "-.")
    used: dict[Role, int] = dict.fromkeys(Role, 0)
    for layer, head in heads:
        role = profile.layers[layer].roles[head]
        curve = measured.overlap[layer, head]
        axes.plot(range(1, len(curve) + 1), curve, color=COLOURS[role], linestyle=styles[used[role] % 4],
                  label=f"layer {layer} head {head}, {role}")  # fmt: skip
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
    known = {f"{i}.{h}": (i, h) for i in range(profile.num_layers) for h in range(profile.num_kv_heads)}
    for name in heads:
        if name not in known:
            raise HeteroError(
                f"`--heads {name}` is no head of this model; write LAYER.HEAD with layers 0 to "
                f"{profile.num_layers - 1} and heads 0 to {profile.num_kv_heads - 1}."
            )
    return [known[name] for name in heads]


def _table_figure(layers: int, heads: int, title: str, cell: float = 0.42) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(max(4.0, cell * heads) + 3.0, max(3.0, 0.24 * layers) + 1.0), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel="KV head", ylabel="layer")
    axes.locator_params(integer=True)
    return figure, axes
