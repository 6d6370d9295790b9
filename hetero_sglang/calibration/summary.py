"""A head profile as text for a terminal."""

from collections import Counter

from hetero_sglang.errors import HeteroError
from hetero_sglang.profile.budget import base_fraction, cap_fractions
from hetero_sglang.profile.head_profile import HeadProfile
from hetero_sglang.profile.index_plan import IndexPlan
from hetero_sglang.profile.roles import Role


def summary(profile: HeadProfile, keep_ratios: tuple[float, ...], strict: bool = False) -> str:
    """Origin, roles per layer, cluster sizes and budgets. With `strict` a ratio at or below the floor raises
    HeteroError, else it is shown as impossible."""
    parts = [_origin(profile), _roles(profile), _layers(profile), _clusters(profile), index_line(profile)]
    return "\n\n".join([*parts, _budgets(profile, keep_ratios, strict)])


def index_line(profile: HeadProfile) -> str:
    """The key index in a sentence: fields, bits, bytes, share of K and V in 16 bits."""
    index, dim = profile.index, profile.head_dim
    if index is None or dim is None:
        return "no key index"
    fields = ", ".join(f"{count} directions in {bits} bits" for count, bits in index.fields)
    row = index.row_bytes
    runs = "" if index.longest == 1 else f", tokens in runs of {'/'.join(map(str, sorted(set(index.run.tolist()))))}"
    count = int(index.probed.sum())
    which = "all heads" if count == profile.num_heads else f"{count} of {profile.num_heads} heads"
    return (
        f"key index of {fields}: {8 * row} bits, {row} bytes a token and head, {row * count} bytes a "
        f"token for {which}, {row / (4 * dim):.1%} of its K and V in 16 bits{runs}{_turns(index)}{_shares(index)}"
    )


def _turns(index: IndexPlan) -> str:
    """How many heads find rows in a step, if not all that have an index."""
    return f", {index.in_a_step:.0f} heads find rows in a step" if index.in_a_step < index.probed.sum() else ""


def _shares(index: IndexPlan) -> str:
    """How unequal heads' rows are, if they are."""
    least, most = index.weight.min(), index.weight.max()
    return f", a head's rows {least:.2g} to {most:.2g} times the mean" if least < most else ""


def _origin(profile: HeadProfile) -> str:
    about = profile.provenance
    lines = [
        f"{about.get('model') or about.get('imported_from') or 'a model'}: {profile.num_layers} layers, "
        f"{profile.num_kv_heads} KV heads, {profile.num_query_heads or '?'} query heads, "
        f"head dimension {profile.head_dim or '?'}"
    ]
    if texts := about.get("texts"):
        lengths = ", ".join(str(n) for n in sorted({text["tokens"] for text in texts}))
        lines.append(
            f"made from {len(texts)} texts of {lengths} tokens, {about.get('steps')} decode steps each, "
            f"GQA {about.get('gqa_reduction')}"
        )
    if "tau_stable" in about:
        lines.append(f"thresholds: stability {about['tau_stable']:g}, similarity {about['tau_sim']:g}")
    if about.get("lacks"):
        lines.append(f"lacks {', '.join(about['lacks'])}")
    return "\n".join(lines)


def _roles(profile: HeadProfile) -> str:
    named = ", ".join(f"{profile.counts[role]} {role} ({role.letter})" for role in Role)
    return (
        f"{named}\n{profile.num_resident} of {profile.num_heads} heads resident: "
        f"the floor is {profile.floor:.4f}, a keep ratio must be above it"
    )


def _layers(profile: HeadProfile) -> str:
    width = max(len("heads"), profile.num_kv_heads + (profile.num_kv_heads - 1) // 8)
    measured = profile.measurements
    lines = [f"layer  {'heads':<{width}}  weights      " + ("stability    " if measured else "") + "clusters"]
    for index, layer in enumerate(profile.layers):
        letters = "".join(role.letter for role in layer.roles)
        letters = " ".join(letters[i : i + 8] for i in range(0, len(letters), 8))
        weights = [layer.weights[h] for h in layer.compressed]
        row = f"{index:5}  {letters:<{width}}  {_range(weights):<13}"
        if measured:
            row += f"{_range(measured.stability[index].tolist()):<13}"
        clusters = (f"{pivot} <- {' '.join(map(str, members))}" for pivot, members in layer.clusters.items())
        lines.append(row + "; ".join(clusters))
    return "\n".join(line.rstrip() for line in lines)


def _range(values: list[float]) -> str:
    return f"{min(values):.2f}-{max(values):.2f}" if values else "-"


def _clusters(profile: HeadProfile) -> str:
    sizes = Counter(1 + len(members) for layer in profile.layers for members in layer.clusters.values())
    if not sizes:
        return "no clusters"
    return "clusters by size, pivot included: " + ", ".join(f"{n} of {size}" for size, n in sorted(sizes.items()))


def _budgets(profile: HeadProfile, keep_ratios: tuple[float, ...], strict: bool) -> str:
    lines = ["keep ratio   base    cap of a compressed head, as a share of its tokens"]
    for ratio in keep_ratios:
        try:
            base = base_fraction(profile, ratio)
        except HeteroError:
            if strict:
                raise
            lines.append(f"{ratio:10.3f}   not possible, at or below the floor")
            continue
        caps = [cap for layer in cap_fractions(profile, ratio) for cap in layer]
        full = sum(cap == 1.0 for cap in caps)
        lines.append(f"{ratio:10.3f}   {base:.4f}  {_range(caps)}" + (f", {full} heads whole" if full else ""))
    return "\n".join(lines)
